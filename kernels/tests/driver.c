/* Fuzzes the C functions against double precision: shapes, formats, thresholds, tokens, threads, values that are not
 * finite. Every buffer is an allocation of its exact size, so that an address sanitizer sees each step outside.
 *
 * usage: driver ROUNDS SEED     exit status 0: all right. Prints the code paths that ran.
 */
#include "compressor_kernels.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint32_t draw(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33);
}

static int64_t below(int64_t n) { return (int64_t)(draw() % (uint32_t)n); }

static float normal(void) {
  float sum = 0;
  for (int i = 0; i < 4; i++) sum += (float)below(2001) / 1000 - 1;
  return sum;
}

static void *room(int64_t bytes) {
  void *p = malloc(bytes ? (size_t)bytes : 1);
  if (!p) exit(3);
  return p;
}

/* Sizes around the borders of vectors, blocks, groups and tiles. */
static int64_t size(void) {
  static const int64_t borders[] = {1, 2, 4, 8, 16, 31, 32, 33, 48, 64, 96, 127, 128, 129, 160, 256, 257};
  return below(2) ? borders[below(sizeof borders / sizeof *borders)] : 1 + below(400);
}

typedef struct {
  ck_matrix m;
  void *data;
  float *scale;
  uint8_t *zero;
  double *values;
} weight;

static void fill_floats(weight *w) {
  const int64_t n = w->m.rows * w->m.cols;
  w->m.pitch = w->m.cols;
  w->data = room(n * (w->m.format == CK_F32 ? 4 : 2));
  for (int64_t i = 0; i < n; i++) {
    if (w->m.format == CK_F32) {
      ((float *)w->data)[i] = normal();
      w->values[i] = ((float *)w->data)[i];
    } else if (w->m.format == CK_F16) { /* exponents of 2^-8 to 2^0, and subnormals */
      const unsigned exponent = below(9) ? 7 + (unsigned)below(9) : 0, mantissa = draw() & 1023, sign = draw() & 1;
      ((uint16_t *)w->data)[i] = (uint16_t)(sign << 15 | exponent << 10 | mantissa);
      const double size = exponent ? ldexp(1024 + mantissa, (int)exponent - 25) : ldexp(mantissa, -24);
      w->values[i] = sign ? -size : size;
    } else {
      const unsigned exponent = 119 + (unsigned)below(9), mantissa = draw() & 127, sign = draw() & 1;
      ((uint16_t *)w->data)[i] = (uint16_t)(sign << 15 | exponent << 7 | mantissa);
      const double size = ldexp(128 + mantissa, (int)exponent - 134);
      w->values[i] = sign ? -size : size;
    }
  }
}

static void fill_codes(weight *w) {
  const int nibbles = w->m.format == CK_U4, whole = !nibbles && below(2);
  const int64_t rows = w->m.rows, cols = w->m.cols, blocks = whole ? 1 : (cols + 31) / 32;
  const int64_t bytes = nibbles ? 16 : whole ? cols : 32;
  w->m.blocks = blocks;
  w->m.pitch = blocks * bytes;
  w->m.one_zero = below(2);
  w->data = room(rows * w->m.pitch);
  w->scale = room(rows * blocks * (int64_t)sizeof(float));
  const int64_t zeros = w->m.one_zero ? 1 : rows * blocks;
  w->zero = room(zeros);
  for (int64_t i = 0; i < rows * w->m.pitch; i++) ((uint8_t *)w->data)[i] = (uint8_t)draw();
  for (int64_t i = 0; i < rows * blocks; i++) w->scale[i] = normal() / (nibbles ? 8 : 128);
  for (int64_t i = 0; i < zeros; i++) w->zero[i] = (uint8_t)below(nibbles ? 16 : 256);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c++) {
      const int64_t block = whole ? 0 : c / 32, in = whole ? c : c % 32, number = r * blocks + block;
      const uint8_t *codes = (uint8_t *)w->data + r * w->m.pitch + block * bytes;
      const int code = nibbles ? codes[in / 2] >> (in % 2 ? 4 : 0) & 15 : codes[in];
      w->values[r * cols + c] = (double)(code - w->zero[w->m.one_zero ? 0 : number]) * w->scale[number];
    }
}

static weight make(int64_t format, int64_t rows, int64_t cols) {
  weight w;
  memset(&w, 0, sizeof w);
  w.m.format = format;
  w.m.rows = rows;
  w.m.cols = cols;
  w.values = room(rows * cols * (int64_t)sizeof *w.values);
  if (format >= CK_U8)
    fill_codes(&w);
  else
    fill_floats(&w);
  w.m.data = w.data;
  w.m.scale = w.scale;
  w.m.zero = w.zero;
  return w;
}

static void drop(weight *w) {
  free(w->data);
  free(w->scale);
  free(w->zero);
  free(w->values);
}

/* A pool of three threads that take the pieces as they come. */
typedef struct {
  void (*task)(void *, size_t);
  void *argument;
  size_t total;
  atomic_size_t next;
} pieces;

static void *work(void *argument) {
  pieces *p = argument;
  for (size_t i; (i = atomic_fetch_add(&p->next, 1)) < p->total;) p->task(p->argument, i);
  return NULL;
}

static void run(void *self, void (*task)(void *, size_t), size_t total, void *argument) {
  (void)self;
  pieces p = {task, argument, total, 0};
  pthread_t threads[2];
  int started = 0;
  for (; started < 2; started++)
    if (pthread_create(&threads[started], NULL, work, &p)) break;
  work(&p);
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
}

static int threads, products;
static const ck_pool pool = {run, NULL, &threads, &products};

static float *inputs(int64_t tokens, int64_t n, float silent) {
  float *x = room(tokens * n * (int64_t)sizeof *x);
  for (int64_t i = 0; i < tokens * n; i++) x[i] = (float)below(1000) / 1000 < silent ? 0 : normal();
  if (tokens * n > 0 && below(8) == 0) x[below(tokens * n)] = below(2) ? NAN : INFINITY;
  return x;
}

static float *limits(int64_t n, int64_t *count) {
  *count = below(2) ? 1 : n;
  float *t = room(*count * (int64_t)sizeof *t);
  const int64_t kind = below(6);
  for (int64_t i = 0; i < *count; i++)
    t[i] = kind == 0 ? -1 : kind == 1 ? INFINITY : kind == 2 ? 0 : fabsf(normal());
  if (below(10) == 0) t[below(*count)] = NAN;
  return t;
}

static int differs(const float *y, const double *wanted, const double *size, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if (isfinite(wanted[i]) != isfinite(y[i])) return 1;
    if (isfinite(wanted[i]) && fabs(y[i] - wanted[i]) > 4e-6 * size[i] + 1e-30) return 1;
  }
  return 0;
}

static int loud(float x, float t) { return !(fabsf(x) <= t); }

/* Adds value * w[row] to the sums, and magnitudes to the sizes. Codes are used before their zero point is taken off, so
 * a product has the size of the larger of the two. */
static void add(double value, const weight *w, int64_t row, double *sums, double *sizes) {
  const int64_t n = w->m.cols;
  for (int64_t i = 0; i < n; i++) {
    const int64_t number = row * w->m.blocks + (w->m.blocks > 1 ? i / 32 : 0);
    const double most = w->scale ? fabs(w->scale[number]) * (w->m.format == CK_U4 ? 16 : 256) : 1;
    sums[i] += value * w->values[row * n + i];
    sizes[i] += fabs(value) * most;
  }
}

static int check_row_skip(const weight *w, int64_t tokens, int64_t dense_from) {
  const int64_t k = w->m.rows, n = w->m.cols;
  int64_t count;
  float *t = limits(k, &count), *x = inputs(tokens, k, 0.5f), *y = room(tokens * n * (int64_t)sizeof *y);
  double *sums = calloc((size_t)(tokens * n + 1), sizeof *sums), *sizes = calloc((size_t)(tokens * n + 1), sizeof *sums);
  for (int64_t m = 0; m < tokens; m++)
    for (int64_t i = 0; i < k; i++)
      if (loud(x[m * k + i], t[count == 1 ? 0 : i])) add(x[m * k + i], w, i, sums + m * n, sizes + m * n);
  int bad = ck_row_skip(&w->m, x, tokens, t, count, dense_from, below(2) ? &pool : NULL, y) != CK_OK;
  bad |= differs(y, sums, sizes, tokens * n);
  free(t);
  free(x);
  free(y);
  free(sums);
  free(sizes);
  return bad;
}

static int check_gated(const weight *up, const weight *down, int64_t tokens, int64_t dense_from) {
  const int64_t k = up->m.cols, h = up->m.rows, n = down->m.cols;
  int64_t count;
  float *t = limits(h, &count), *x = inputs(tokens, k, 0), *g = inputs(tokens, h, 0.5f);
  float *y = room(tokens * n * (int64_t)sizeof *y);
  double *sums = calloc((size_t)(tokens * n + 1), sizeof *sums), *sizes = calloc((size_t)(tokens * n + 1), sizeof *sums);
  for (int64_t m = 0; m < tokens; m++)
    for (int64_t i = 0; i < h; i++) {
      if (!loud(g[m * h + i], t[count == 1 ? 0 : i])) continue;
      double dot = 0, most = 0;
      for (int64_t j = 0; j < k; j++) {
        const int64_t number = i * up->m.blocks + (up->m.blocks > 1 ? j / 32 : 0);
        const double one = up->scale ? fabs(up->scale[number]) * (up->m.format == CK_U4 ? 16 : 256) : 1;
        dot += (double)x[m * k + j] * up->values[i * k + j];
        most += fabs(x[m * k + j]) * one;
      }
      add(g[m * h + i] * dot, down, i, sums + m * n, sizes + m * n);
      double *spare = calloc((size_t)n, sizeof *spare); /* the sizes that the error of the dot product adds */
      add(fabs(g[m * h + i]) * most, down, i, spare, sizes + m * n);
      free(spare);
    }
  int bad = ck_gated_mlp(&up->m, &down->m, x, g, tokens, t, count, dense_from, below(2) ? &pool : NULL, y) != CK_OK;
  bad |= differs(y, sums, sizes, tokens * n);
  free(t);
  free(x);
  free(g);
  free(y);
  free(sums);
  free(sizes);
  return bad;
}

static int one_round(void) {
  static const int64_t some_tokens[] = {0, 1, 1, 1, 2, 3, 4, 5, 7, 13};
  const int64_t format = below(CK_FORMATS), inner = size(), width = size(), outer = size();
  const int64_t tokens = some_tokens[below(10)], dense_from = below(2) ? 1 : 1000;
  weight w = make(format, width, outer), up = make(format, inner, width), down = make(format, inner, outer);
  int bad = 0;
  if (check_row_skip(&w, tokens, dense_from)) bad = 1;
  if (check_gated(&up, &down, tokens, dense_from)) bad |= 2;
  if (bad)
    fprintf(stderr, "%s: format %d, width %d, neurons %d, outputs %d, tokens %d, dense_from %d: wrong (%d)\n",
            ck_path(), (int)format, (int)width, (int)inner, (int)outer, (int)tokens, (int)dense_from, bad);
  drop(&w);
  drop(&up);
  drop(&down);
  return bad != 0;
}

int main(int count, char **arguments) {
  const int rounds = count > 1 ? atoi(arguments[1]) : 100, seed = count > 2 ? atoi(arguments[2]) : 1;
  const char *name;
  int usable, wrong = 0;
  for (int i = 0; (name = ck_path_name(i, &usable)) != NULL; i++) {
    if (!usable) continue;
    if (ck_select_path(name) != CK_OK) return 2;
    state = (uint64_t)seed;
    for (int r = 0; r < rounds; r++) wrong += one_round();
    printf("%s\n", name);
  }
  return wrong ? 1 : 0;
}
