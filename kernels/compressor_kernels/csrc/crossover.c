/* What a weight costs on this machine, one token at a time and many at once; measured on first use of a format. */
#include "paths.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

/* Of the matrix that is measured: larger than most second-level caches in the smallest format, and quickly gone through. */
#define MEASURED_ROWS 1024
#define MEASURED_COLUMNS 2048
#define FEW 4
#define MANY 16

static ck_cost costs[CK_FORMATS][2];
static atomic_int measured[CK_FORMATS];
static atomic_flag measuring = ATOMIC_FLAG_INIT;

static double now(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
  const ck_path_table *path;
  ck_matrix w;
  int32_t *rows;
  float *in, *out;
} trial;

static void once(trial *t, int kind, int64_t tokens) {
  if (kind == 0) {
    if (tokens == 0)
      t->path->add_rows[t->w.format](&t->w, t->rows, t->in, t->w.rows, 0, t->w.cols, t->out + MANY * t->w.cols, t->out);
    else
      t->path->dense_add(&t->w, t->rows, t->w.rows, t->in, tokens, 0, t->w.cols, t->out);
  } else {
    if (tokens == 0)
      t->path->meet_rows[t->w.format](&t->w, t->rows, t->w.rows, t->in, t->out);
    else
      t->path->dense_meet(&t->w, t->rows, t->w.rows, t->in, tokens, 0, t->w.rows, t->out);
  }
}

/* Seconds per weight; tokens 0: the loop over rows for one token. */
static double timed(trial *t, int kind, int64_t tokens) {
  double best = 0;
  for (int i = 0; i < 3; i++) {
    const double start = now();
    once(t, kind, tokens);
    const double taken = now() - start;
    if (i == 1 || (i > 1 && taken < best)) best = taken; /* the first one brings the matrix into memory */
  }
  return best / ((double)t->w.rows * (double)t->w.cols);
}

static void measure(int64_t format) {
  const size_t weights = (size_t)MEASURED_ROWS * MEASURED_COLUMNS;
  const int64_t blocks = MEASURED_COLUMNS / CK_BLOCK;
  const size_t bytes[CK_FORMATS] = {4 * weights, 2 * weights, 2 * weights, weights, weights / 2};
  static const uint8_t zero = 8;
  char *data = malloc(bytes[format]);
  float *scale = malloc(sizeof *scale * MEASURED_ROWS * (size_t)blocks);
  float *values = malloc(sizeof *values * MEASURED_COLUMNS * (2 * MANY + 2));
  int32_t *rows = malloc(sizeof *rows * MEASURED_ROWS);
  if (data && scale && values && rows) {
    memset(data, 0, bytes[format]);
    for (int64_t i = 0; i < MEASURED_ROWS * blocks; i++) scale[i] = 1;
    for (int64_t i = 0; i < MEASURED_COLUMNS * (2 * MANY + 2); i++) values[i] = 1;
    for (int32_t i = 0; i < MEASURED_ROWS; i++) rows[i] = i;
    const int64_t pitch = format == CK_U4 ? MEASURED_COLUMNS / 2 : MEASURED_COLUMNS;
    trial t = {ck_current(), {format, MEASURED_ROWS, MEASURED_COLUMNS, pitch, blocks, 1, data, scale, &zero},
               rows, values, values + MEASURED_COLUMNS * MANY};
    for (int kind = 0; kind < 2; kind++) {
      const double few = timed(&t, kind, FEW), many = timed(&t, kind, MANY);
      ck_cost *cost = &costs[format][kind];
      cost->loop = timed(&t, kind, 0);
      cost->token = many > few ? (many - few) / (MANY - FEW) : 0;
      cost->read = few > FEW * cost->token ? few - FEW * cost->token : 0;
    }
  }
  free(rows);
  free(values);
  free(scale);
  free(data);
}

ck_cost ck_cost_of(int64_t format, int kind) {
  while (!atomic_load(&measured[format])) {
    if (atomic_flag_test_and_set(&measuring)) continue; /* another thread is at it */
    if (!atomic_load(&measured[format])) {
      measure(format);
      atomic_store(&measured[format], 1);
    }
    atomic_flag_clear(&measuring);
  }
  return costs[format][kind];
}

int ck_costs(int64_t format, int kind, double *loop, double *read, double *token) {
  if (format < 0 || format >= CK_FORMATS || kind < 0 || kind > 1) return CK_BAD_ARGUMENT;
  const ck_cost cost = ck_cost_of(format, kind);
  *loop = cost.loop;
  *read = cost.read;
  *token = cost.token;
  return CK_OK;
}
