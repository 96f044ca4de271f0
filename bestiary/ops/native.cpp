// The engines `recurrence`, `scan`, `convolution` and `norm` on a CPU, in float32, forward and backward.
//
// Compiled at first use by `_build.py` and called through ctypes by `_native.py`, `convolution.py` and `norm.py`, whose
// structures mirror those below.
// Vector extensions of GCC and Clang, POSIX threads, no other library. Not for -ffast-math, which would fold away the
// rounding in `power`.
//
// Recurrences and scans go through time in order and keep the state in the nearest caches. Their forward pass stores the
// state at the start of every segment of time; the backward pass takes the segments from the last to the first, computes
// the states of one again from there, and goes back through it.

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// What the registers hold: lanes of a vector, modes of a selective scan at a time, vectors of a row of the recurrence
// at a time. Vectors wider than a register are no help: GCC 12 then goes through memory, five to ten times slower.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define AVX512
enum { LANES = 16, MOST_MODES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8, MOST_MODES = 8 };
#else
enum { LANES = 4, MOST_MODES = 8 };
#endif
enum { WIDEST = 4 };

// GCC leaves vectors in memory between functions that it does not inline, and it inlines few of them by itself.
#define INLINE inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

static INLINE Vector all(float x) { return Vector{} + x; }

static INLINE Vector load(const float* from) {
  Vector x;
  memcpy(&x, from, sizeof x);
  return x;
}

static INLINE void store(float* to, Vector x) { memcpy(to, &x, sizeof x); }

// The first `count` numbers of a vector: loaded with zeros behind them, stored alone. Without branches, which would
// cost the registers of the loops around.
#if defined(AVX512)
static INLINE __mmask16 mask(int64_t count) { return count >= LANES ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }
static INLINE Vector load(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(mask(count), from); }
static INLINE void store(float* to, Vector x, int64_t count) { _mm512_mask_storeu_ps(to, mask(count), x); }
#elif defined(__AVX2__)
static INLINE __m256i mask(int64_t count) {
  const int most = count >= LANES ? LANES : count <= 0 ? 0 : int(count);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(most), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static INLINE Vector load(const float* from, int64_t count) { return _mm256_maskload_ps(from, mask(count)); }
static INLINE void store(float* to, Vector x, int64_t count) { _mm256_maskstore_ps(to, mask(count), x); }
#else
static INLINE Vector load(const float* from, int64_t count) {
  if (count >= LANES) return load(from);
  Vector x = {};
  for (int i = 0; i < LANES; i++)
    if (i < count) x[i] = from[i];
  return x;
}
static INLINE void store(float* to, Vector x, int64_t count) {
  if (count >= LANES) return store(to, x);
  for (int i = 0; i < LANES; i++)
    if (i < count) to[i] = x[i];
}
#endif

static INLINE void add(float* to, Vector x, int64_t count, bool fresh) {
  store(to, fresh ? x : load(to, count) + x, count);
}

// 2^x: 0 far below, infinite far above, NaN of NaN. The polynomial is ours, fitted to 2^f on [-1/2, 1/2], relative
// error 4e-9 before rounding.
static INLINE Vector power(Vector x) {
#if defined(AVX512)
  const Vector f = _mm512_reduce_ps(x, 8);  // x - round(x)
#else
  x = x < -127.0f ? all(-127.0f) : x > 128.0f ? all(128.0f) : x;
  const Vector shifted = x + 12582912.0f;  // 1.5 * 2^23: the low bits are round(x)
  const Vector f = x - (shifted - 12582912.0f);
#endif
  Vector p = all(1.5353350e-4f);
  p = p * f + 1.3398874e-3f;
  p = p * f + 9.6184378e-3f;
  p = p * f + 5.5503324e-2f;
  p = p * f + 2.4022648e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
#if defined(AVX512)
  return _mm512_scalef_ps(p, x - f);
#else
  Bits bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127u) << 23;
  Vector scale;
  memcpy(&scale, &bits, sizeof scale);
  return p * scale;
#endif
}

static const float LOG2_E = 1.44269504f;

// Sums of vectors. `merge` adds lanes STEP apart of x and y and interleaves what comes out; after log2(LANES) of them,
// lane i holds the sum of vector i.
template <int STEP, unsigned... LANE>
struct Merge {
  static INLINE Vector of(Vector x, Vector y) {
#if defined(__clang__)
    const Vector own = __builtin_shufflevector(x, y, (LANE & STEP ? LANES + LANE : LANE)...);
    const Vector other = __builtin_shufflevector(x, y, (LANE & STEP ? LANES + LANE - STEP : LANE + STEP)...);
#else
    const Vector own = __builtin_shuffle(x, y, Bits{(LANE & STEP ? LANES + LANE : LANE)...});
    const Vector other = __builtin_shuffle(x, y, Bits{(LANE & STEP ? LANES + LANE - STEP : LANE + STEP)...});
#endif
    return own + other;
  }
};

template <int STEP>
static INLINE Vector merge(Vector x, Vector y) {
#if defined(AVX512)
  return Merge<STEP, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>::of(x, y);
#elif defined(__AVX2__)
  return Merge<STEP, 0, 1, 2, 3, 4, 5, 6, 7>::of(x, y);
#else
  return Merge<STEP, 0, 1, 2, 3>::of(x, y);
#endif
}

template <int COUNT>
struct Sums {
  static INLINE Vector of(const float* rows) {
    return merge<COUNT / 2>(Sums<COUNT / 2>::of(rows), Sums<COUNT / 2>::of(rows + COUNT / 2 * LANES));
  }
};

template <>
struct Sums<1> {
  static INLINE Vector of(const float* rows) { return load(rows); }
};

// The sums of LANES rows of LANES numbers.
static INLINE Vector sums(const float* rows) { return Sums<LANES>::of(rows); }

static INLINE float sum(Vector x) {
  float total = 0, part[LANES];
  store(part, x);
  for (int i = 0; i < LANES; i++) total += part[i];
  return total;
}

// Threads. They are started for one call and end with it, so that a process may be forked between calls, which a
// thread pool such as OpenMP's does not survive.

static INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
static INLINE int64_t round_up(int64_t x) { return (x + LANES - 1) / LANES * LANES; }  // up to whole vectors

template <class Work>
struct Shared {
  const Work* work;
  float* scratch;
  int64_t each, count, next, started;

  static void* run(void* given) {
    Shared& shared = *static_cast<Shared*>(given);
    float* scratch = shared.scratch + shared.each * __atomic_fetch_add(&shared.started, 1, __ATOMIC_RELAXED);
    for (;;) {
      const int64_t item = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED);
      if (item >= shared.count) return nullptr;
      (*shared.work)(item, scratch);
    }
  }
};

// Call work(item, scratch) for every item below `count`, with `each` numbers of scratch for every thread. `size` is how
// many numbers all items together go through: a thread is started for no less than about a tenth of a millisecond.
// The result does not depend on the number of threads. 0, or 1 if there is not enough memory.
template <class Work>
static int run_parallel(int64_t count, int64_t size, int64_t threads, int64_t each, const Work& work) {
  enum { MOST = 256, WORTH = 1 << 19 };
  threads = least(least(threads, 1 + size / WORTH), least(count, MOST));
  if (threads < 1) return 0;
  each = round_up(each) + 64;  // no two threads write to one cache line
  void* scratch = nullptr;
  if (posix_memalign(&scratch, 64, sizeof(float) * each * threads)) return 1;
  Shared<Work> shared = {&work, static_cast<float*>(scratch), each, count, 0, 0};
  pthread_t others[MOST];
  int64_t running = 0;
  while (running < threads - 1 && !pthread_create(&others[running], nullptr, Shared<Work>::run, &shared)) running++;
  Shared<Work>::run(&shared);
  while (running > 0) pthread_join(others[--running], nullptr);
  free(scratch);
  return 0;
}

// The recurrence: S' = Diag(e^g) S + a (b^T S) + k v^T,  y = q^T S'.

struct Rows {  // a tensor (batch, time, heads, width) whose last axis is dense
  const float* first;
  int64_t batch, time, head;  // strides
};

enum Form { PLAIN = 0, REWRITE = 1, ERASE = 2 };  // nothing erased; a = w k; a given

struct Recurrence {
  int64_t batch, time, heads, key, value;
  int64_t decays;  // per head: 0, 1, or as many as keys
  int64_t shared;  // whether all heads have one q and one k, of which the gradients are sums over heads
  int64_t form, threads;
  Rows q, k, v, g, a, b;  // of REWRITE, w in the place of a
  const float* state;     // (batch, heads, key, value), as `last` and their gradients
  float *y, *last, *kept;
  const float *gy, *glast;
  float *gq, *gk, *gv, *gg, *ga, *gb, *gstate;  // dense
};

// Time is cut into segments and the columns of the state into tiles of at most WIDEST vectors, so that the states of one
// segment of one tile fit the second cache.
struct Cut {
  int64_t vectors, tiles, segment, segments;
  explicit Cut(const Recurrence& r) {
    vectors = round_up(r.value) / LANES;
    tiles = (vectors + WIDEST - 1) / WIDEST;
    const int64_t size = 4 * r.key * LANES * (tiles ? (vectors + tiles - 1) / tiles : 1);
    const int64_t fit = (512 << 10) / (size ? size : 1) - 1;
    segment = fit < 16 ? 16 : fit > 32 ? 32 : fit;
    segments = (r.time + segment - 1) / segment;
  }
  int64_t begin(int64_t tile) const {  // in vectors; the first tiles are wider by one if need be
    return tile * (vectors / tiles) + least(tile, vectors % tiles);
  }
  int64_t kept(const Recurrence& r) const { return segments * r.key * vectors * LANES; }  // numbers, of a head
};

template <int W>
static INLINE void load_row(Vector (&to)[W], const float* from, int64_t count) {
  for (int w = 0; w < W; w++) to[w] = load(from + w * LANES, count - w * LANES);
}

template <int W>
static INLINE void store_row(float* to, const Vector (&from)[W], int64_t count) {
  for (int w = 0; w < W; w++) store(to + w * LANES, from[w], count - w * LANES);
}

template <int W>
static INLINE void zero(Vector (&x)[W]) {
  for (int w = 0; w < W; w++) x[w] = Vector{};
}

// Some columns of one head of one sequence.
struct Head {
  const Recurrence& r;
  const Cut& cut;
  int64_t b, h, column, count;  // the first column, and how many there are from it to the last

  Head(const Recurrence& r, const Cut& cut, int64_t index, int64_t tile)
      : r(r), cut(cut), b(index / r.heads), h(index % r.heads), column(cut.begin(tile) * LANES),
        count(r.value - column) {}

  const float* at(const Rows& rows, int64_t t) const {
    return rows.first ? rows.first + b * rows.batch + t * rows.time + h * rows.head : nullptr;
  }
  int64_t place(int64_t t) const { return (b * r.time + t) * r.heads + h; }  // in a dense tensor
  int64_t place_of_qk(int64_t t) const { return (r.shared ? b * r.time + t : place(t)) * r.key; }
  int64_t row(int64_t i) const { return ((b * r.heads + h) * r.key + i) * r.value + column; }  // of the state
  bool fresh() const { return column == 0; }  // whether gradients that sum over columns have no terms yet
  float* kept(int64_t segment, int64_t columns) const {
    return r.kept + (b * r.heads + h) * cut.kept(r) + (cut.segments * column + segment * columns) * r.key;
  }

  // e^g for each key; `to` holds whole vectors
  void decay(float* to, int64_t t) const {
    const float* g = at(r.g, t);
    if (r.decays > 1) {
      for (int64_t i = 0; i < r.key; i += LANES) store(to + i, power(LOG2_E * load(g + i, r.key - i)));
    } else {
      const Vector same = r.decays ? power(all(LOG2_E * *g)) : all(1.0f);
      for (int64_t i = 0; i < r.key; i += LANES) store(to + i, same);
    }
  }
};

// u = b^T S
template <int W>
static INLINE void read(Vector (&u)[W], const float* state, const float* b, int64_t keys) {
  zero(u);
  for (int64_t i = 0; i < keys; i++)
    for (int w = 0; w < W; w++) u[w] += load(state + (i * W + w) * LANES) * b[i];
}

// One position: `to` from `from`, y = q^T to where READ, and u = ahead^T to, which the next position erases.
// `z` is what is written along k; on entry `u` is what is erased along a.
template <int FORM, int W, bool READ>
static INLINE void advance(const float* from, float* to, const float* decay, const float* q, const float* k,
                           const float* a, const float* ahead, const Vector (&z)[W], Vector (&u)[W], Vector (&y)[W],
                           int64_t keys) {
  enum { TURNS = W == 1 ? 4 : W == 2 ? 2 : 1 };  // sums in turns, lest each addition wait for the one before
  Vector reads[TURNS][W], nexts[TURNS][W];
  for (int c = 0; c < TURNS; c++) zero(reads[c]), zero(nexts[c]);
  const auto row = [&](int64_t i, int c) __attribute__((always_inline)) {
    for (int w = 0; w < W; w++) {
      Vector x = load(from + (i * W + w) * LANES) * decay[i] + z[w] * k[i];
      if (FORM == ERASE) x += u[w] * a[i];
      store(to + (i * W + w) * LANES, x);
      if (READ) reads[c][w] += x * q[i];
      if (FORM != PLAIN) nexts[c][w] += x * ahead[i];
    }
  };
  int64_t i = 0;
  for (; i + TURNS <= keys; i += TURNS)
    for (int c = 0; c < TURNS; c++) row(i + c, c);
  for (; i < keys; i++) row(i, 0);
  for (int w = 0; w < W; w++) {
    for (int c = 1; c < TURNS; c++) reads[0][w] += reads[c][w], nexts[0][w] += nexts[c][w];
    if (READ) y[w] = reads[0][w];
    if (FORM != PLAIN) u[w] = nexts[0][w];
  }
}

template <int FORM, int W>
static void forward(const Head& head, float* scratch) {
  enum { COLUMNS = W * LANES };
  const Recurrence& r = head.r;
  float *state = scratch, *decay = state + r.key * COLUMNS, *nothing = decay + round_up(r.key);
  for (int64_t i = 0; i < r.key; i++) nothing[i] = 0;
  Vector u[W], y[W], z[W];
  for (int64_t i = 0; i < r.key; i++) {
    load_row(z, r.state + head.row(i), head.count);
    store_row(state + i * COLUMNS, z, COLUMNS);
  }
  zero(u);
  if (FORM != PLAIN && r.time) read(u, state, head.at(r.b, 0), r.key);
  for (int64_t t = 0; t < r.time; t++) {
    if (r.kept && t % head.cut.segment == 0)
      memcpy(head.kept(t / head.cut.segment, COLUMNS), state, sizeof(float) * r.key * COLUMNS);
    const float* a = head.at(r.a, t);
    head.decay(decay, t);
    load_row(z, head.at(r.v, t) + head.column, head.count);
    if (FORM == REWRITE)
      for (int w = 0; w < W; w++) z[w] += u[w] * *a;
    advance<FORM, W, true>(state, state, decay, head.at(r.q, t), head.at(r.k, t), a,
                           t + 1 < r.time ? head.at(r.b, t + 1) : nothing, z, u, y, r.key);
    store_row(r.y + head.place(t) * r.value + head.column, y, head.count);
  }
  for (int64_t i = 0; i < r.key; i++) {
    load_row(z, state + i * COLUMNS, COLUMNS);
    store_row(r.last + head.row(i), z, head.count);
  }
}

// What one segment of one tile needs to go back through it. Of the position behind it, t + 1: the gradient of its
// state in `grad`, its decay and b, and in `gu` the gradient of what it erased.
template <int W>
struct Segment {
  float *states, *u, *z, *decay, *grad, *behind, *nothing, *rows[5], *line;
  enum { COLUMNS = W * LANES };
  static int64_t size(const Recurrence& r, const Cut& cut) {
    const int64_t keys = round_up(r.key);
    return (cut.segment + 2) * r.key * COLUMNS + cut.segment * (2 * COLUMNS + keys) + (3 + 5 * LANES) * keys;
  }
  Segment(const Recurrence& r, const Cut& cut, float* scratch) {
    const int64_t keys = round_up(r.key);
    states = scratch;
    grad = states + (cut.segment + 1) * r.key * COLUMNS;
    u = grad + r.key * COLUMNS;
    z = u + cut.segment * COLUMNS;
    decay = z + cut.segment * COLUMNS;
    behind = decay + cut.segment * keys;
    nothing = behind + keys;
    line = nothing + keys;
    for (int i = 0; i < 5; i++) rows[i] = line + keys + i * keys * LANES;
    for (int64_t i = 0; i < keys; i++) nothing[i] = 0;
    for (int64_t i = r.key * LANES; i < keys * LANES; i++)
      for (int j = 0; j < 5; j++) rows[j][i] = 0;
  }
  // The sums of the rows of `from`, each one number of `to`.
  static void gather(float* to, const float* from, int64_t keys, bool fresh) {
    for (int64_t i = 0; i < keys; i += LANES) add(to + i, sums(from + i * LANES), keys - i, fresh);
  }
};

enum { OF_Q, OF_K, OF_G, OF_B, OF_A };

// Back by one position: the gradient of the state before the next position becomes that of the state after this one.
template <int FORM, int W>
static INLINE void step_back(const Segment<W>& s, const float* before, const float* after, const float* decay,
                           const float* b, const float* q, const float* k, const float* a, const Vector (&gy)[W],
                           const Vector (&z)[W], const Vector (&u)[W], Vector (&gu)[W], Vector (&gz)[W], int64_t keys) {
  Vector next[W];
  zero(gz), zero(next);
  for (int64_t i = 0; i < keys; i++) {
    Vector of_q = {}, of_k = {}, of_g = {}, of_b = {}, of_a = {};
    for (int w = 0; w < W; w++) {
      const int64_t place = (i * W + w) * LANES;
      const Vector now = load(after + place);
      Vector g = load(s.grad + place) * decay[i];
      if (FORM != PLAIN) {
        g += gu[w] * b[i];
        of_b += now * gu[w];
      }
      g += gy[w] * q[i];
      store(s.grad + place, g);
      of_q += now * gy[w];
      of_k += g * z[w];
      of_g += g * load(before + place);
      gz[w] += g * k[i];
      if (FORM == ERASE) {
        of_a += g * u[w];
        next[w] += g * a[i];
      }
    }
    store(s.rows[OF_Q] + i * LANES, of_q);
    store(s.rows[OF_K] + i * LANES, of_k);
    store(s.rows[OF_G] + i * LANES, of_g);
    if (FORM != PLAIN) store(s.rows[OF_B] + i * LANES, of_b);
    if (FORM == ERASE) store(s.rows[OF_A] + i * LANES, of_a);
  }
  if (FORM == ERASE)
    for (int w = 0; w < W; w++) gu[w] = next[w];
}

// The states of the positions from `start` to `end`, what they erase and what they write.
template <int FORM, int W>
static INLINE void recompute(const Head& head, const Segment<W>& s, int64_t start, int64_t end) {
  const Recurrence& r = head.r;
  Vector u[W], z[W], y[W];
  zero(u);
  if (FORM != PLAIN) read(u, s.states, head.at(r.b, start), r.key);
  for (int64_t t = start; t < end; t++) {
    const int64_t i = t - start;
    float *state = s.states + i * r.key * s.COLUMNS, *decay = s.decay + i * round_up(r.key);
    const float* a = head.at(r.a, t);
    head.decay(decay, t);
    load_row(z, head.at(r.v, t) + head.column, head.count);
    if (FORM == REWRITE)
      for (int w = 0; w < W; w++) z[w] += u[w] * *a;
    store_row(s.u + i * s.COLUMNS, u, s.COLUMNS);
    store_row(s.z + i * s.COLUMNS, z, s.COLUMNS);
    advance<FORM, W, false>(state, state + r.key * s.COLUMNS, decay, nullptr, head.at(r.k, t), a,
                            t + 1 < end ? head.at(r.b, t + 1) : s.nothing, z, u, y, r.key);
  }
}

// Gradients that sum over the columns: those of position t, and that of b at t + 1.
template <int FORM, int W>
static INLINE void sum_columns(const Head& head, const Segment<W>& s, const float* decay, int64_t t) {
  const Recurrence& r = head.r;
  const bool fresh = head.fresh(), first = fresh && (head.h == 0 || !r.shared);
  const int64_t place = head.place(t) * r.key;
  s.gather(r.gq + head.place_of_qk(t), s.rows[OF_Q], r.key, first);
  s.gather(r.gk + head.place_of_qk(t), s.rows[OF_K], r.key, first);
  if (FORM == ERASE) s.gather(r.ga + place, s.rows[OF_A], r.key, fresh);
  if (FORM != PLAIN && t + 1 < r.time) s.gather(r.gb + head.place(t + 1) * r.key, s.rows[OF_B], r.key, fresh);
  if (!r.decays) return;
  s.gather(s.line, s.rows[OF_G], r.key, true);
  if (r.decays > 1) {
    for (int64_t i = 0; i < r.key; i += LANES)
      add(r.gg + place + i, load(s.line + i) * load(decay + i), r.key - i, fresh);
  } else {
    float total = fresh ? 0 : r.gg[head.place(t)];
    for (int64_t i = 0; i < r.key; i++) total += s.line[i] * decay[i];
    r.gg[head.place(t)] = total;
  }
}

template <int FORM, int W>
static void backward(const Head& head, float* scratch) {
  const Recurrence& r = head.r;
  const Segment<W> s(r, head.cut, scratch);
  const int64_t size = r.key * s.COLUMNS;
  Vector row[W], gu[W], gz[W], gy[W], u[W], z[W];
  for (int64_t i = 0; i < r.key; i++) {
    load_row(row, r.glast + head.row(i), head.count);
    store_row(s.grad + i * s.COLUMNS, row, s.COLUMNS);
    s.behind[i] = 1;
  }
  zero(gu);
  const float* b = s.nothing;
  for (int64_t segment = head.cut.segments - 1; segment >= 0; segment--) {
    const int64_t start = segment * head.cut.segment, end = least(start + head.cut.segment, r.time);
    memcpy(s.states, head.kept(segment, s.COLUMNS), sizeof(float) * size);
    recompute<FORM, W>(head, s, start, end);
    const float* behind = s.behind;
    for (int64_t t = end - 1; t >= start; t--) {
      const int64_t i = t - start;
      const float *before = s.states + i * size, *a = head.at(r.a, t), *decay = s.decay + i * round_up(r.key);
      load_row(gy, r.gy + head.place(t) * r.value + head.column, head.count);
      load_row(u, s.u + i * s.COLUMNS, s.COLUMNS);
      load_row(z, s.z + i * s.COLUMNS, s.COLUMNS);
      step_back<FORM, W>(s, before, before + size, behind, b, head.at(r.q, t), head.at(r.k, t), a, gy, z, u, gu, gz,
                         r.key);
      if (FORM == REWRITE) {
        Vector of_w = {};
        for (int w = 0; w < W; w++) {
          of_w += gz[w] * u[w];
          gu[w] = gz[w] * *a;
        }
        float& gw = r.ga[head.place(t)];
        gw = (head.fresh() ? 0 : gw) + sum(of_w);
      }
      store_row(r.gv + head.place(t) * r.value + head.column, gz, head.count);
      sum_columns<FORM, W>(head, s, decay, t);
      behind = decay;
      b = FORM == PLAIN ? nullptr : head.at(r.b, t);
    }
    memcpy(s.behind, s.decay, sizeof(float) * r.key);
  }
  for (int64_t i = 0; i < r.key; i++) {  // before all: the gradients of the state given and of the first b
    Vector of_b = {};
    load_row(row, s.grad + i * s.COLUMNS, s.COLUMNS);
    for (int w = 0; w < W; w++) {
      row[w] *= s.behind[i];
      if (FORM == PLAIN || !r.time) continue;
      row[w] += gu[w] * b[i];
      of_b += gu[w] * load(s.states + i * s.COLUMNS + w * LANES);
    }
    store_row(r.gstate + head.row(i), row, head.count);
    store(s.rows[OF_B] + i * LANES, of_b);
  }
  if (FORM != PLAIN && r.time) s.gather(r.gb + head.place(0) * r.key, s.rows[OF_B], r.key, head.fresh());
}

template <int FORM, int W>
static void recur(const Head& head, bool back, float* scratch) {
  if (back) backward<FORM, W>(head, scratch);
  else forward<FORM, W>(head, scratch);
}

template <int FORM>
static int recur(const Recurrence& r, bool back) {
  const Cut cut(r);
  const int64_t together = r.shared ? r.heads : 1, items = r.batch * r.heads / together;
  const int64_t size = r.batch * r.heads * r.time * r.key * r.value;
  return run_parallel(items, size, r.threads, Segment<WIDEST>::size(r, cut), [&](int64_t item, float* scratch) {
    for (int64_t index = item * together; index < (item + 1) * together; index++)
      for (int64_t tile = 0; tile < cut.tiles; tile++) {
        const Head head(r, cut, index, tile);
        switch (cut.begin(tile + 1) - cut.begin(tile)) {
          case 1: recur<FORM, 1>(head, back, scratch); break;
          case 2: recur<FORM, 2>(head, back, scratch); break;
          case 3: recur<FORM, 3>(head, back, scratch); break;
          default: recur<FORM, WIDEST>(head, back, scratch);
        }
      }
  });
}

static int recur(const Recurrence& r, bool back) {
  return r.form == PLAIN ? recur<PLAIN>(r, back) : r.form == REWRITE ? recur<REWRITE>(r, back) : recur<ERASE>(r, back);
}

extern "C" int64_t recurrence_kept(const Recurrence* r) { return r->heads * Cut(*r).kept(*r); }  // of a sequence
extern "C" int recurrence_forward(const Recurrence* r) { return recur(*r, false); }
extern "C" int recurrence_backward(const Recurrence* r) { return recur(*r, true); }

// The selective scan: h' = decay h + dt u B,  y = C . h'  in each channel, where the decay is exp(dt A), or 2 exp(dt A) - 1
// if it may be negative, or 1 - dt B^2 if there is no A.

enum { SELECTIVE_SEGMENT = 16 };
enum Decay { POSITIVE, NEGATIVE, WITHOUT_A };

struct Selective {
  int64_t batch, time, channels, modes;
  int64_t sharing, negative, threads;  // so many sequences in a row share one A; whether decays may be negative
  const float *dt, *u;       // (batch, time, channels), dense as y
  const float* rate;         // A: (batch / sharing, modes, channels), or null
  const float *b, *c;        // (batch, time, modes), the last axis dense
  int64_t b_batch, b_time, c_batch, c_time;
  const float* state;  // (batch, modes, channels), as `last` and their gradients
  float *y, *last, *kept;
  const float *gy, *glast;
  float *gdt, *gu, *grate, *gb_c, *gstate;  // of A for each sequence; of B and C as (batch, time, modes, 2)
};

template <int DECAY>
static INLINE Vector decay_of(Vector dt, Vector rate, float b) {  // the rate times log2(e)
  if (DECAY == WITHOUT_A) return 1.0f - dt * (b * b);
  return DECAY == NEGATIVE ? 2.0f * power(dt * rate) - 1.0f : power(dt * rate);
}

static INLINE int64_t selective_segments(const Selective& r) {
  return (r.time + SELECTIVE_SEGMENT - 1) / SELECTIVE_SEGMENT;
}

// MODES numbers of the state, from `mode` on, of the channels from `channel` on
template <int MODES, int DECAY>
static INLINE void selective_forward(const Selective& r, int64_t batch, int64_t channel, int64_t mode) {
  const int64_t count = r.channels - channel, wide = round_up(r.channels), segments = selective_segments(r);
  const float* rates = DECAY != WITHOUT_A ? r.rate + (batch / r.sharing * r.modes + mode) * r.channels + channel : nullptr;
  Vector h[MODES], rate[MODES];
  for (int n = 0; n < MODES; n++) {
    rate[n] = DECAY != WITHOUT_A ? LOG2_E * load(rates + n * r.channels, count) : Vector{};
    h[n] = load(r.state + (batch * r.modes + mode + n) * r.channels + channel, count);
  }
  for (int64_t t = 0; t < r.time; t++) {
    if (r.kept && t % SELECTIVE_SEGMENT == 0)
      for (int n = 0; n < MODES; n++)
        store(r.kept + ((batch * segments + t / SELECTIVE_SEGMENT) * r.modes + mode + n) * wide + channel, h[n]);
    const int64_t place = (batch * r.time + t) * r.channels + channel;
    const float *b = r.b + batch * r.b_batch + t * r.b_time + mode, *c = r.c + batch * r.c_batch + t * r.c_time + mode;
    const Vector dt = load(r.dt + place, count), x = dt * load(r.u + place, count);
    Vector y = {};
    for (int n = 0; n < MODES; n++) {
      h[n] = decay_of<DECAY>(dt, rate[n], b[n]) * h[n] + x * b[n];
      y += h[n] * c[n];
    }
    add(r.y + place, y, count, mode == 0);
  }
  for (int n = 0; n < MODES; n++) store(r.last + (batch * r.modes + mode + n) * r.channels + channel, h[n], count);
}

// The memory of the backward pass of one sequence. What is used together lies together: arrays apart by a multiple of
// 4,096 bytes would make loads of one wait for stores to the other.
struct Scratch {
  float* of_b_c;           // (segment, modes, 2, lanes): sums over channels
  float* states;           // (segment + 1, modes of a block, 2, lanes): the decay at a position and the state after it
  float *carry, *of_rate;  // (modes, channels)
  static int64_t segment(const Selective& r) { return round_up(SELECTIVE_SEGMENT * r.modes * 2) * LANES; }
  static int64_t whole(const Selective& r) { return r.modes * round_up(r.channels); }
  enum { BLOCK = (SELECTIVE_SEGMENT + 1) * MOST_MODES * 2 * LANES };
  static int64_t size(const Selective& r) { return segment(r) + BLOCK + 2 * whole(r); }
  Scratch(const Selective& r, float* scratch) {
    of_b_c = scratch;
    states = of_b_c + segment(r);
    carry = states + BLOCK;
    of_rate = carry + whole(r);
  }
};

template <int MODES, int DECAY>
static INLINE void selective_backward(const Selective& r, const Scratch& s, int64_t batch, int64_t segment,
                                      int64_t channel, int64_t mode) {
  const int64_t count = r.channels - channel, wide = round_up(r.channels), segments = selective_segments(r);
  const int64_t start = segment * SELECTIVE_SEGMENT, end = least(start + SELECTIVE_SEGMENT, r.time);
  const float* rates = DECAY != WITHOUT_A ? r.rate + (batch / r.sharing * r.modes + mode) * r.channels + channel : nullptr;
  Vector h[MODES], rate[MODES];
  for (int n = 0; n < MODES; n++) {
    rate[n] = DECAY != WITHOUT_A ? LOG2_E * load(rates + n * r.channels, count) : Vector{};
    h[n] = load(r.kept + ((batch * segments + segment) * r.modes + mode + n) * wide + channel);
    store(s.states + (2 * n + 1) * LANES, h[n]);
  }
  for (int64_t t = start; t < end; t++) {
    const int64_t place = (batch * r.time + t) * r.channels + channel;
    const float* b = r.b + batch * r.b_batch + t * r.b_time + mode;
    const Vector dt = load(r.dt + place, count), x = dt * load(r.u + place, count);
    float* states = s.states + (t - start + 1) * MODES * 2 * LANES;
    for (int n = 0; n < MODES; n++) {
      const Vector decay = decay_of<DECAY>(dt, rate[n], b[n]);
      h[n] = decay * h[n] + x * b[n];
      store(states + 2 * n * LANES, decay);
      store(states + (2 * n + 1) * LANES, h[n]);
    }
  }
  Vector carry[MODES], of_rate[MODES];
  for (int n = 0; n < MODES; n++) {
    carry[n] = load(s.carry + (mode + n) * wide + channel);
    of_rate[n] = load(s.of_rate + (mode + n) * wide + channel);
    if (DECAY != WITHOUT_A) rate[n] = load(rates + n * r.channels, count);
  }
  for (int64_t t = end - 1; t >= start; t--) {
    const int64_t place = (batch * r.time + t) * r.channels + channel;
    const float *before = s.states + (t - start) * MODES * 2 * LANES, *after = before + MODES * 2 * LANES;
    float* of_b_c = s.of_b_c + ((t - start) * r.modes + mode) * 2 * LANES;
    const float *b = r.b + batch * r.b_batch + t * r.b_time + mode, *c = r.c + batch * r.c_batch + t * r.c_time + mode;
    const Vector dt = load(r.dt + place, count), u = load(r.u + place, count), gy = load(r.gy + place, count);
    const Vector x = dt * u;
    Vector of_x = {}, of_dt = {};
    for (int n = 0; n < MODES; n++) {
      float *of_b = of_b_c + 2 * n * LANES, *of_c = of_b + LANES;
      const Vector g = carry[n] + gy * c[n];
      const Vector h = load(before + (2 * n + 1) * LANES);
      carry[n] = g * load(after + 2 * n * LANES);
      of_x += g * b[n];
      store(of_c, load(of_c) + gy * load(after + (2 * n + 1) * LANES));
      if (DECAY != WITHOUT_A) {
        const Vector slope = (DECAY == NEGATIVE ? carry[n] + g : carry[n]) * h;  // of dt A: g h (decay + 1), or g h decay
        of_dt += slope * rate[n];
        of_rate[n] += slope * dt;
        store(of_b, load(of_b) + g * x);
      } else {
        const Vector slope = g * h * b[n];
        of_dt -= slope * b[n];
        store(of_b, load(of_b) + g * x - 2.0f * dt * slope);
      }
    }
    add(r.gdt + place, of_dt + of_x * u, count, mode == 0);
    add(r.gu + place, of_x * dt, count, mode == 0);
  }
  for (int n = 0; n < MODES; n++) {
    store(s.carry + (mode + n) * wide + channel, carry[n]);
    store(s.of_rate + (mode + n) * wide + channel, of_rate[n]);
  }
}

// Call kernel<so many modes, its decay>(...) from `mode` on until all modes are done.
#define BLOCK(modes, r, kernel, ...)                                                                   \
  {                                                                                                    \
    if (!(r).rate) kernel<modes, WITHOUT_A>(__VA_ARGS__);                                                   \
    else if ((r).negative) kernel<modes, NEGATIVE>(__VA_ARGS__);                                       \
    else kernel<modes, POSITIVE>(__VA_ARGS__);                                                         \
    mode += modes;                                                                                     \
  }
#define IN_BLOCKS(r, most, kernel, ...)                                                                \
  for (int64_t mode = 0; mode < (r).modes;) {                                                          \
    const int64_t left = (r).modes - mode;                                                             \
    if (most >= 16 && left >= 16) BLOCK((most >= 16 ? 16 : 8), r, kernel, __VA_ARGS__)                 \
    else if (left >= 8) BLOCK(8, r, kernel, __VA_ARGS__)                                               \
    else if (left >= 4) BLOCK(4, r, kernel, __VA_ARGS__)                                               \
    else if (left >= 2) BLOCK(2, r, kernel, __VA_ARGS__)                                               \
    else BLOCK(1, r, kernel, __VA_ARGS__)                                                              \
  }

static void selective_backward(const Selective& r, int64_t batch, float* scratch) {
  const Scratch s(r, scratch);
  const int64_t wide = round_up(r.channels);
  for (int64_t n = 0; n < r.modes; n++)
    for (int64_t d = 0; d < wide; d += LANES) {
      store(s.carry + n * wide + d, load(r.glast + (batch * r.modes + n) * r.channels + d, r.channels - d));
      store(s.of_rate + n * wide + d, Vector{});
    }
  for (int64_t segment = selective_segments(r) - 1; segment >= 0; segment--) {
    memset(s.of_b_c, 0, sizeof(float) * Scratch::segment(r));
    for (int64_t channel = 0; channel < r.channels; channel += LANES) {
      IN_BLOCKS(r, 8, selective_backward, r, s, batch, segment, channel, mode)
    }
    const int64_t start = segment * SELECTIVE_SEGMENT, place = (batch * r.time + start) * r.modes * 2;
    const int64_t here = least(SELECTIVE_SEGMENT, r.time - start) * r.modes * 2;
    for (int64_t i = 0; i < here; i += LANES) store(r.gb_c + place + i, sums(s.of_b_c + i * LANES), here - i);
  }
  for (int64_t n = 0; n < r.modes; n++)
    for (int64_t d = 0; d < wide; d += LANES) {
      const int64_t place = (batch * r.modes + n) * r.channels + d;
      store(r.gstate + place, load(s.carry + n * wide + d), r.channels - d);
      if (r.rate) store(r.grate + place, load(s.of_rate + n * wide + d), r.channels - d);
    }
}

static INLINE int64_t selective_size(const Selective& r) { return r.batch * r.time * r.channels * r.modes; }

extern "C" int64_t selective_kept(const Selective* r) {  // of a sequence
  return selective_segments(*r) * r->modes * round_up(r->channels);
}

extern "C" int selective_forward(const Selective* given) {
  const Selective& r = *given;
  const int64_t tiles = round_up(r.channels) / LANES;
  return run_parallel(r.batch * tiles, selective_size(r), r.threads, 0, [&](int64_t item, float*) {
    const int64_t batch = item / tiles, channel = item % tiles * LANES;
    IN_BLOCKS(r, MOST_MODES, selective_forward, r, batch, channel, mode)
  });
}

extern "C" int selective_backward(const Selective* r) {
  return run_parallel(r->batch, selective_size(*r), r->threads, Scratch::size(*r),
               [&](int64_t batch, float* scratch) { selective_backward(*r, batch, scratch); });
}

// The elementwise recurrence: h' = a h + x.

struct Scan {
  int64_t batch, time, channels, threads;
  const float *a, *x;  // (batch, time, channels), dense as h
  const float* state;  // (batch, channels)
  float* h;
  const float* gh;
  float *ga, *gx, *gstate;
};

enum { ABREAST = 4 };  // vectors of channels

template <class Work>
static int scan(const Scan& r, const Work& work) {
  const int64_t columns = ABREAST * LANES, tiles = (r.channels + columns - 1) / columns;
  return run_parallel(r.batch * tiles, r.batch * r.time * r.channels, r.threads, 0,
               [&](int64_t item, float*) { work(item / tiles, item % tiles * columns); });
}

extern "C" int scan_forward(const Scan* given) {
  const Scan& r = *given;
  return scan(r, [&](int64_t batch, int64_t channel) {
    const int64_t count = r.channels - channel;
    Vector h[ABREAST];
    load_row(h, r.state + batch * r.channels + channel, count);
    for (int64_t t = 0; t < r.time; t++) {
      const int64_t place = (batch * r.time + t) * r.channels + channel;
      Vector a[ABREAST], x[ABREAST];
      load_row(a, r.a + place, count);
      load_row(x, r.x + place, count);
      for (int w = 0; w < ABREAST; w++) h[w] = a[w] * h[w] + x[w];
      store_row(r.h + place, h, count);
    }
  });
}

extern "C" int scan_backward(const Scan* given) {
  const Scan& r = *given;
  return scan(r, [&](int64_t batch, int64_t channel) {
    const int64_t count = r.channels - channel;
    Vector carry[ABREAST], state[ABREAST], h[ABREAST];
    zero(carry);
    load_row(state, r.state + batch * r.channels + channel, count);
    for (int64_t t = r.time - 1; t >= 0; t--) {
      const int64_t place = (batch * r.time + t) * r.channels + channel;
      Vector a[ABREAST], gh[ABREAST];
      load_row(a, r.a + place, count);
      load_row(gh, r.gh + place, count);
      if (t > 0) load_row(h, r.h + place - r.channels, count);
      for (int w = 0; w < ABREAST; w++) {
        const Vector gx = gh[w] + carry[w];
        gh[w] = gx;
        carry[w] = a[w] * gx;
        a[w] = gx * (t > 0 ? h[w] : state[w]);
      }
      store_row(r.gx + place, gh, count);
      store_row(r.ga + place, a, count);
    }
    store_row(r.gstate + batch * r.channels + channel, carry, count);
  });
}

// The short convolution: z_t = sum_j f_j x_{t-j} + bias in each channel, where x is zero before the first position, and
// y = z, or z sigmoid(z).

struct Convolution {
  int64_t batch, time, channels, taps, biased, silu;
  int64_t sharing, threads;                                     // sequences that share a filter
  int64_t x_batch, x_time, g_batch, g_time, gx_batch, gx_time;  // strides of x, gy and gx, whose last axes are dense
  const float *x, *filter;  // filter (batch / sharing, taps + biased, channels), dense, the bias its last row
  float* y;                 // (batch, time, channels), dense
  const float* gy;
  float *gx, *gfilter;      // gfilter (batch, taps + biased, channels): of each sequence

  int64_t rows() const { return taps + biased; }
};

enum { ACROSS = ABREAST * LANES };  // channels

template <class Work>
static int convolve(const Convolution& r, int64_t each, const Work& work) {
  const int64_t tiles = (r.channels + ACROSS - 1) / ACROSS;
  return run_parallel(r.batch * tiles, r.batch * r.time * r.channels * r.taps, r.threads, each,
                      [&](int64_t item, float* scratch) { work(item / tiles, item % tiles * ACROSS, scratch); });
}

static INLINE Vector sigmoid(Vector x) { return 1.0f / (1.0f + power(-LOG2_E * x)); }

// z at one position of some channels
static INLINE void slide(Vector (&z)[ABREAST], const Convolution& r, const float* x, const float* filter, int64_t t,
                         int64_t count) {
  zero(z);
  if (r.biased) load_row(z, filter + r.taps * r.channels, count);
  for (int64_t j = 0; j < least(r.taps, t + 1); j++) {
    Vector f[ABREAST], seen[ABREAST];
    load_row(f, filter + j * r.channels, count);
    load_row(seen, x + (t - j) * r.x_time, count);
    for (int w = 0; w < ABREAST; w++) z[w] += f[w] * seen[w];
  }
}

extern "C" int convolution_forward(const Convolution* given) {
  const Convolution& r = *given;
  return convolve(r, 0, [&](int64_t batch, int64_t channel, float*) {
    const int64_t count = r.channels - channel;
    const float* x = r.x + batch * r.x_batch + channel;
    const float* filter = r.filter + batch / r.sharing * r.rows() * r.channels + channel;
    for (int64_t t = 0; t < r.time; t++) {
      Vector z[ABREAST];
      slide(z, r, x, filter, t, count);
      if (r.silu)
        for (int w = 0; w < ABREAST; w++) z[w] *= sigmoid(z[w]);
      store_row(r.y + (batch * r.time + t) * r.channels + channel, z, count);
    }
  });
}

extern "C" int convolution_backward(const Convolution* given) {
  const Convolution& r = *given;
  return convolve(r, r.silu ? r.time * ACROSS : 0, [&](int64_t batch, int64_t channel, float* scratch) {
    const int64_t count = r.channels - channel, rows = r.rows();
    const float *x = r.x + batch * r.x_batch + channel, *gz = r.gy + batch * r.g_batch + channel;
    const float* filter = r.filter + batch / r.sharing * rows * r.channels + channel;
    int64_t stride = r.g_time;
    if (r.silu) {
      for (int64_t t = 0; t < r.time; t++) {
        Vector z[ABREAST], g[ABREAST];
        slide(z, r, x, filter, t, count);
        load_row(g, gz + t * stride, count);
        for (int w = 0; w < ABREAST; w++) {
          const Vector open = sigmoid(z[w]);
          g[w] *= open * (1.0f + z[w] * (1.0f - open));
        }
        store_row(scratch + t * ACROSS, g, ACROSS);
      }
      gz = scratch, stride = ACROSS;
    }
    for (int64_t t = 0; t < r.time; t++) {
      Vector gx[ABREAST];
      zero(gx);
      for (int64_t j = 0; j < least(r.taps, r.time - t); j++) {
        Vector f[ABREAST], g[ABREAST];
        load_row(f, filter + j * r.channels, count);
        load_row(g, gz + (t + j) * stride, count);
        for (int w = 0; w < ABREAST; w++) gx[w] += f[w] * g[w];
      }
      store_row(r.gx + batch * r.gx_batch + t * r.gx_time + channel, gx, count);
    }
    for (int64_t j = 0; j < rows; j++) {
      Vector sum[ABREAST];
      zero(sum);
      for (int64_t t = j < r.taps ? j : 0; t < r.time; t++) {
        Vector g[ABREAST], seen[ABREAST];
        load_row(g, gz + t * stride, count);
        if (j < r.taps) load_row(seen, x + (t - j) * r.x_time, count);
        for (int w = 0; w < ABREAST; w++) sum[w] += j < r.taps ? g[w] * seen[w] : g[w];
      }
      store_row(r.gfilter + (batch * rows + j) * r.channels + channel, sum, count);
    }
  });
}

// The norm of rows: y = x w a(z) / sqrt(scale |x|^2 + epsilon), where w and the gate a(z) may be missing.

enum Gate { OPEN = 0, SILU = 1, SIGMOID = 2 };

struct Norm {
  int64_t batch, time, heads, width;
  int64_t sharing, tile, gate, threads;  // sequences that share a w; positions of a part of time
  double scale, epsilon;
  Rows x, z, gy;
  const float* w;  // (batch / sharing, width), dense
  float* y;        // (batch, time, heads, width), dense as gx and gz
  float *gx, *gz, *gw;  // gw (batch, tiles, width): of each part of time

  int64_t tiles() const { return (time + tile - 1) / tile; }
};

// a(z), and its slope
static INLINE Vector open_gate(int64_t gate, Vector z) { return gate == SILU ? z * sigmoid(z) : sigmoid(z); }
static INLINE Vector gate_slope(int64_t gate, Vector z) {
  const Vector open = sigmoid(z);
  return gate == SILU ? open * (1.0f + z * (1.0f - open)) : open * (1.0f - open);
}

static INLINE Vector inverse_root(Vector x) {
#if defined(AVX512)
  return 1.0f / Vector(_mm512_sqrt_ps(x));
#elif defined(__AVX2__)
  return 1.0f / Vector(_mm256_sqrt_ps(x));
#else
  for (int i = 0; i < LANES; i++) x[i] = 1.0f / __builtin_sqrtf(x[i]);
  return x;
#endif
}

// At most LANES rows at a time, whose sums over the width come out as one vector.
struct Bundle {
  int64_t first, count;  // the index of the first in a dense tensor
  const float *x[LANES], *z[LANES], *gy[LANES];
};

template <class Work>
static INLINE void in_bundles(const Norm& r, int64_t batch, int64_t tile, const Work& work) {
  const int64_t start = tile * r.tile, end = least(r.time, start + r.tile);
  const auto at = [&](const Rows& rows, int64_t t, int64_t h) {
    return rows.first ? rows.first + batch * rows.batch + t * rows.time + h * rows.head : nullptr;
  };
  Bundle bundle;
  bundle.first = (batch * r.time + start) * r.heads, bundle.count = 0;
  for (int64_t t = start; t < end; t++)
    for (int64_t h = 0; h < r.heads; h++) {
      const int64_t i = bundle.count++;
      bundle.x[i] = at(r.x, t, h), bundle.z[i] = at(r.z, t, h), bundle.gy[i] = at(r.gy, t, h);
      if (bundle.count < LANES) continue;
      work(bundle);
      bundle.first += LANES, bundle.count = 0;
    }
  if (bundle.count) work(bundle);
}

template <class Work>
static int over_tiles(const Norm& r, int64_t each, const Work& work) {
  const int64_t size = 4 * r.batch * r.time * r.heads * r.width;
  return run_parallel(r.batch * r.tiles(), size, r.threads, each,
                      [&](int64_t item, float* scratch) { work(item / r.tiles(), item % r.tiles(), scratch); });
}

extern "C" int norm_forward(const Norm* given) {
  const Norm& r = *given;
  return over_tiles(r, 0, [&](int64_t batch, int64_t tile, float*) {
    const float* w = r.w ? r.w + batch / r.sharing * r.width : nullptr;
    in_bundles(r, batch, tile, [&](const Bundle& rows) {
      float squares[LANES * LANES] = {}, factors[LANES];
      for (int64_t i = 0; i < rows.count; i++) {
        Vector total = {};
        for (int64_t c = 0; c < r.width; c += LANES) {
          const Vector x = load(rows.x[i] + c, r.width - c);
          total += x * x;
        }
        store(squares + i * LANES, total);
      }
      store(factors, inverse_root(float(r.scale) * sums(squares) + float(r.epsilon)));
      for (int64_t i = 0; i < rows.count; i++)
        for (int64_t c = 0; c < r.width; c += LANES) {
          Vector y = load(rows.x[i] + c, r.width - c) * factors[i];
          if (w) y *= load(w + c, r.width - c);
          if (r.gate) y *= open_gate(r.gate, load(rows.z[i] + c, r.width - c));
          store(r.y + (rows.first + i) * r.width + c, y, r.width - c);
        }
    });
  });
}

extern "C" int norm_backward(const Norm* given) {
  const Norm& r = *given;
  return over_tiles(r, round_up(r.width), [&](int64_t batch, int64_t tile, float* gw) {
    const float* w = r.w ? r.w + batch / r.sharing * r.width : nullptr;
    for (int64_t c = 0; c < r.width; c += LANES) store(gw + c, Vector{});
    in_bundles(r, batch, tile, [&](const Bundle& rows) {
      float squares[LANES * LANES] = {}, products[LANES * LANES] = {}, factors[LANES], along[LANES];
      for (int64_t i = 0; i < rows.count; i++) {
        Vector square = {}, product = {};
        for (int64_t c = 0; c < r.width; c += LANES) {
          const Vector x = load(rows.x[i] + c, r.width - c);
          Vector g = load(rows.gy[i] + c, r.width - c);
          if (r.gate) g *= open_gate(r.gate, load(rows.z[i] + c, r.width - c));
          if (w) g *= load(w + c, r.width - c);
          square += x * x;
          product += x * g;
        }
        store(squares + i * LANES, square);
        store(products + i * LANES, product);
      }
      const Vector factor = inverse_root(float(r.scale) * sums(squares) + float(r.epsilon));
      store(factors, factor);
      store(along, sums(products) * factor * factor * factor * float(r.scale));
      for (int64_t i = 0; i < rows.count; i++)
        for (int64_t c = 0; c < r.width; c += LANES) {
          const int64_t place = (rows.first + i) * r.width + c, left = r.width - c;
          const Vector x = load(rows.x[i] + c, left), weight = w ? load(w + c, left) : all(1.0f);
          Vector g = load(rows.gy[i] + c, left) * factors[i];
          if (r.gate) {
            const Vector z = load(rows.z[i] + c, left);
            store(r.gz + place, g * x * weight * gate_slope(r.gate, z), left);
            g *= open_gate(r.gate, z);
          }
          store(r.gx + place, g * weight - x * along[i], left);
          if (w) store(gw + c, load(gw + c) + g * x);
        }
    });
    if (w)
      for (int64_t c = 0; c < r.width; c += LANES)
        store(r.gw + (batch * r.tiles() + tile) * r.width + c, load(gw + c), r.width - c);
  });
}

extern "C" int lanes(void) { return LANES; }
