// Calls every kernel with odd shapes, on arrays of exactly the size they need; to be run under sanitizers.

#include "native.cpp"

#include <vector>

static uint32_t seed = 1;

// So many numbers in (-1, 1), in memory of their own.
struct Array {
  float* at;
  explicit Array(int64_t count) : at(static_cast<float*>(malloc(sizeof(float) * count))) {
    for (int64_t i = 0; i < count; i++) at[i] = int32_t(seed = seed * 1664525u + 1013904223u) / 2147483648.0f;
  }
  Array(const Array&) = delete;
  ~Array() { free(at); }
  operator float*() const { return at; }
};

static void recurrence(int64_t batch, int64_t time, int64_t heads, int64_t key, int64_t value, int64_t decays,
                       int64_t form, int64_t threads, bool shared = false) {
  const int64_t all = batch * time * heads, states = batch * heads * key * value;
  Array q(all * key), k(all * key), v(all * value), g(all * decays), a(all * (form == ERASE ? key : 1)), b(all * key);
  Array state(states), y(all * value), last(states), gy(all * value), glast(states), gstate(states);
  Array gq(all * key), gk(all * key), gv(all * value), gg(all * decays), ga(all * key), gb(all * key);
  const auto rows = [&](float* first, int64_t width) {
    return Rows{first, time * heads * width, heads * width, width};
  };
  Recurrence r = {};
  r.batch = batch, r.time = time, r.heads = heads, r.key = key, r.value = value;
  r.decays = decays, r.form = form, r.threads = threads, r.shared = shared;
  r.q = rows(q, key), r.k = rows(k, key), r.v = rows(v, value), r.g = rows(g, decays);
  if (shared) {  // one q and k for all heads, in the place of the first
    r.q = {q, time * key, key, 0}, r.k = {k, time * key, key, 0};
  }
  if (form != PLAIN) r.a = rows(a, form == ERASE ? key : 1), r.b = rows(b, key);
  r.state = state, r.y = y, r.last = last, r.gy = gy, r.glast = glast, r.gstate = gstate;
  r.gq = gq, r.gk = gk, r.gv = gv, r.gg = gg, r.ga = ga, r.gb = gb;
  Array kept(batch * recurrence_kept(&r));
  r.kept = kept;
  if (recurrence_forward(&r) || recurrence_backward(&r)) abort();
}

static void selective(int64_t batch, int64_t time, int64_t channels, int64_t modes, int64_t sharing, int64_t threads) {
  const int64_t all = batch * time * channels, states = batch * channels * modes, rates = channels * modes;
  Array dt(all), u(all), rate(rates * (batch / sharing)), b(batch * time * modes), c(batch * time * modes);
  Array state(states), y(all), last(states), gy(all), glast(states), gdt(all), gu(all), grate(states);
  Array gb_c(batch * time * modes * 2), gstate(states);
  Selective r = {};
  r.batch = batch, r.time = time, r.channels = channels, r.modes = modes, r.sharing = sharing, r.threads = threads;
  r.dt = dt, r.u = u, r.rate = sharing > 1 ? rate.at : nullptr, r.b = b, r.c = c, r.state = state, r.y = y, r.last = last;
  r.b_batch = r.c_batch = time * modes, r.b_time = r.c_time = modes;
  r.gy = gy, r.glast = glast, r.gdt = gdt, r.gu = gu, r.grate = grate, r.gb_c = gb_c, r.gstate = gstate;
  Array kept(batch * selective_kept(&r));
  r.kept = kept;
  if (selective_forward(&r) || selective_backward(&r)) abort();
}

static void elementwise(int64_t batch, int64_t time, int64_t channels, int64_t threads) {
  const int64_t all = batch * time * channels, states = batch * channels;
  Array a(all), x(all), state(states), h(all), gh(all), ga(all), gx(all), gstate(states);
  Scan r = {batch, time, channels, threads, a, x, state, h, gh, ga, gx, gstate};
  if (scan_forward(&r) || scan_backward(&r)) abort();
}

// A convolution, or a stream with a bias and SiLU, which is a part of wider rows.
static void convolution(int64_t batch, int64_t time, int64_t channels, int64_t taps, int64_t sharing, int64_t threads,
                        bool stream) {
  const int64_t wide = stream ? channels + 3 : channels, all = batch * time * channels;
  const int64_t filters = (taps + stream) * channels;
  Array x(batch * time * wide), filter(filters * (batch / sharing)), y(all), gy(all), gx(batch * time * wide);
  Array gfilter(filters * batch);
  Convolution r = {};
  r.batch = batch, r.time = time, r.channels = channels, r.taps = taps, r.biased = r.silu = stream;
  r.sharing = sharing, r.threads = threads;
  r.x_batch = r.gx_batch = time * wide, r.x_time = r.gx_time = wide, r.g_batch = time * channels, r.g_time = channels;
  r.x = x + (wide - channels), r.filter = filter, r.y = y, r.gy = gy, r.gx = gx + (wide - channels);
  r.gfilter = gfilter;
  if (convolution_forward(&r) || convolution_backward(&r)) abort();
}

static void norm(int64_t batch, int64_t time, int64_t heads, int64_t width, int64_t gate, int64_t sharing,
                 int64_t threads) {
  const int64_t tile = 32, all = batch * time * heads * width, wide = heads * width + 2;
  Array x(batch * time * wide), z(batch * time * wide), gy(all), w(width * batch), y(all), gx(all), gz(all);
  Array gw(batch * ((time + tile - 1) / tile) * width);
  const auto rows = [&](float* first, int64_t row) { return Rows{first, time * row, row, width}; };
  Norm r = {};
  r.batch = batch, r.time = time, r.heads = heads, r.width = width, r.gate = gate, r.tile = tile;
  r.threads = threads, r.sharing = sharing, r.scale = 1, r.epsilon = 1e-6;
  r.x = rows(x + 2, wide), r.gy = rows(gy, heads * width), r.y = y, r.gx = gx;
  if (gate) r.z = rows(z + 2, wide), r.gz = gz;
  if (sharing) r.w = w, r.gw = gw;
  if (norm_forward(&r) || norm_backward(&r)) abort();
}

int main() {
  for (int64_t time : {0, 1, 2, 17, 33, 70})
    for (int64_t threads : {1, 3}) {
      const int64_t batch = threads > 1 ? 40 : 2;  // enough for several threads
      for (int64_t form : {PLAIN, REWRITE, ERASE})
        for (int64_t width : {1, 5, 16, 33, 130})
          for (int64_t key : {1, 3, 16, 21})
            for (int64_t decays : {int64_t(0), int64_t(1), key})
              if (threads == 1 || (key == 16 && width != 130))
                recurrence(batch, time, 2, key, width, decays, form, threads);
      for (int64_t width : {5, 130}) recurrence(batch, time, 3, 7, width, 1, PLAIN, threads, true);
      for (int64_t channels : {1, 5, 16, 33})
        for (int64_t modes : {1, 3, 7, 16, 31})
          for (int64_t sharing : {int64_t(1), batch}) selective(batch, time, channels, modes, sharing, threads);
      for (int64_t channels : {1, 5, 64, 67, 130}) elementwise(threads * batch, time, channels, threads);
      for (int64_t channels : {1, 5, 64, 67, 130})
        for (int64_t taps : {1, 4, 9})
          for (int64_t sharing : {int64_t(1), batch})
            for (bool stream : {false, true}) convolution(batch, time, channels, taps, sharing, threads, stream);
      for (int64_t width : {1, 5, 16, 33})
        for (int64_t gate : {OPEN, SILU, SIGMOID})
          for (int64_t sharing : {int64_t(0), int64_t(1), batch}) norm(batch, time, 3, width, gate, sharing, threads);
    }
  return 0;
}
