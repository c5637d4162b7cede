/* The two products: which rows are read, and by which of the paths. */
#include "paths.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

/* Rows of a list that are worth a thread's while. */
#define ROWS_PER_PIECE 16

typedef struct {
  const ck_path_table *path;
  const ck_matrix *w;
  const int32_t *rows;
  int64_t count, tokens;
  const float *in;
  float *scratch, *out;
  atomic_int no_memory; /* set by any thread, read when all are done */
} work;

static void add_columns(void *argument, int64_t from, int64_t to) {
  work *j = argument;
  j->path->add_rows[j->w->format](j->w, j->rows, j->in, j->count, from, to, j->scratch, j->out);
}

static void meet_list(void *argument, int64_t from, int64_t to) {
  work *j = argument;
  j->path->meet_rows[j->w->format](j->w, j->rows + from, to - from, j->in, j->out + from);
}

static void dense_columns(void *argument, int64_t from, int64_t to) {
  work *j = argument;
  if (!j->path->dense_add(j->w, j->rows, j->count, j->in, j->tokens, from, to, j->out))
    atomic_store(&j->no_memory, 1);
}

static void dense_list(void *argument, int64_t from, int64_t to) {
  work *j = argument;
  j->path->dense_meet(j->w, j->rows, j->count, j->in, j->tokens, from, to, j->out);
}

static int silent(float x, float threshold) { return fabsf(x) <= threshold; }

/* Lists the inputs of one token that are not silent; returns how many. */
static int64_t list_loud(const float *x, const float *thresholds, int64_t step, int64_t n, int32_t *rows) {
  int64_t count = 0;
  for (int64_t k = 0; k < n; k++) {
    rows[count] = (int32_t)k;
    count += !silent(x[k], thresholds[k * step]);
  }
  return count;
}

/* Lists the inputs that are not silent for at least one token; *sum is how many there are over all tokens. */
static int64_t list_any(const float *x, int64_t tokens, const float *thresholds, int64_t step, int64_t n,
                        int32_t *rows, int64_t *sum) {
  int64_t count = 0;
  *sum = 0;
  for (int64_t k = 0; k < n; k++) {
    int64_t loud = 0;
    for (int64_t t = 0; t < tokens; t++) loud += !silent(x[t * n + k], thresholds[k * step]);
    rows[count] = (int32_t)k;
    count += loud > 0;
    *sum += loud;
  }
  return count;
}

/* Memory for the lists and values of one product, cut from one piece. */
typedef struct {
  char *at;
} arena;

static int64_t padded(int64_t n) { return (n + CK_COLUMNS - 1) / CK_COLUMNS * CK_COLUMNS; }

static float *floats(arena *a, int64_t n) {
  float *p = (float *)a->at;
  a->at += padded(n) * (int64_t)sizeof *p;
  return p;
}

static int32_t *indices(arena *a, int64_t n) { return (int32_t *)floats(a, n); }

/* Whether the dense path is to be taken for this many tokens. `loud` of their inputs are not silent, in `any` rows. */
static int dense_pays(ck_cost cost, int64_t tokens, int64_t loud, int64_t any, int64_t dense_from) {
  if (dense_from > 0) return tokens >= dense_from;
  if (tokens == 1) return 0;
  return (double)any * (cost.read + cost.token * (double)tokens) < (double)loud * cost.loop;
}

static int64_t dense_from_environment(int64_t dense_from) {
  const char *given = getenv("COMPRESSOR_KERNELS_DENSE_FROM");
  return given && *given ? strtoll(given, NULL, 10) : dense_from;
}

static int bad(const ck_matrix *w) {
  if (w->format < 0 || w->format >= CK_FORMATS || w->rows < 0 || w->cols < 0 || w->rows > INT32_MAX) return 1;
  if (w->format < CK_U8) return w->pitch < w->cols;
  const int64_t blocks = (w->cols + CK_BLOCK - 1) / CK_BLOCK;
  if (w->format == CK_U4) return w->blocks != blocks || w->pitch < blocks * (CK_BLOCK / 2);
  return (w->blocks != 1 && w->blocks != blocks) || w->pitch < w->cols;
}

static int row_skip_dense(work *j, const float *x, const float *thresholds, int64_t step, const ck_pool *pool) {
  const int64_t n = j->w->rows;
  float *kept = malloc((size_t)(j->tokens * j->count + 1) * sizeof *kept);
  if (!kept) return CK_NO_MEMORY;
  for (int64_t t = 0; t < j->tokens; t++)
    for (int64_t i = 0; i < j->count; i++) {
      const float value = x[t * n + j->rows[i]];
      kept[t * j->count + i] = silent(value, thresholds[j->rows[i] * step]) ? 0 : value;
    }
  j->in = kept;
  ck_spread(pool, j->w->cols, CK_COLUMNS, dense_columns, j);
  free(kept);
  return atomic_load(&j->no_memory) ? CK_NO_MEMORY : CK_OK;
}

int ck_row_skip(const ck_matrix *w, const float *x, int64_t tokens, const float *thresholds, int64_t threshold_count,
                int64_t dense_from, const ck_pool *pool, float *y) {
  if (bad(w) || tokens < 0 || (threshold_count != 1 && threshold_count != w->rows)) return CK_BAD_ARGUMENT;
  const int64_t step = threshold_count == 1 ? 0 : 1;
  int result = CK_OK;
  arena a;
  char *memory = a.at = malloc((size_t)(2 * padded(w->rows + 1) + padded(w->cols)) * sizeof(float));
  if (!memory) return CK_NO_MEMORY;
  int32_t *rows = indices(&a, w->rows + 1);
  float *coef = floats(&a, w->rows + 1);
  work j = {ck_current(), w, rows, 0, tokens, coef, floats(&a, w->cols), y, 0};
  dense_from = dense_from_environment(dense_from);
  int64_t loud = 0;
  if (tokens > 1 || dense_from == 1) {
    j.count = list_any(x, tokens, thresholds, step, w->rows, rows, &loud);
    if (dense_pays(ck_cost_of(w->format, 0), tokens, loud, j.count, dense_from)) {
      result = row_skip_dense(&j, x, thresholds, step, pool);
      tokens = 0;
    }
  }
  for (int64_t t = 0; t < tokens; t++, x += w->rows) {
    j.count = list_loud(x, thresholds, step, w->rows, rows);
    for (int64_t i = 0; i < j.count; i++) coef[i] = x[rows[i]];
    j.out = y + t * w->cols;
    ck_spread(pool, w->cols, CK_COLUMNS, add_columns, &j);
  }
  free(memory);
  return result;
}

static int gated_mlp_dense(work *up, work *down, const float *g, const float *thresholds, int64_t step,
                           const ck_pool *pool) {
  const int64_t n = up->w->rows, count = up->count;
  float *hidden = malloc((size_t)(up->tokens * count + 1) * sizeof *hidden);
  if (!hidden) return CK_NO_MEMORY;
  up->out = hidden;
  ck_spread(pool, count, ROWS_PER_PIECE * 3, dense_list, up);
  for (int64_t t = 0; t < up->tokens; t++)
    for (int64_t i = 0; i < count; i++) {
      const float gate = g[t * n + up->rows[i]];
      float *value = hidden + t * count + i;
      *value = silent(gate, thresholds[up->rows[i] * step]) ? 0 : gate * *value;
    }
  down->count = count;
  down->in = hidden;
  ck_spread(pool, down->w->cols, CK_COLUMNS, dense_columns, down);
  free(hidden);
  return atomic_load(&down->no_memory) ? CK_NO_MEMORY : CK_OK;
}

static ck_cost mlp_cost(const ck_matrix *up, const ck_matrix *down) {
  ck_cost meet = ck_cost_of(up->format, 1);
  const ck_cost add = ck_cost_of(down->format, 0);
  const double whole = (double)(up->cols + down->cols), share = whole > 0 ? (double)up->cols / whole : 0;
  meet.loop = share * meet.loop + (1 - share) * add.loop;
  meet.read = share * meet.read + (1 - share) * add.read;
  meet.token = share * meet.token + (1 - share) * add.token;
  return meet;
}

static void gated_mlp_token(work *up, work *down, const float *x, const float *g, float *hidden, float *arranged,
                            const ck_pool *pool) {
  up->in = x;
  up->out = hidden;
  if (arranged) {
    up->path->arrange(x, up->w->cols, arranged);
    up->in = arranged;
  }
  ck_spread(pool, up->count, ROWS_PER_PIECE, meet_list, up);
  for (int64_t i = 0; i < up->count; i++) hidden[i] *= g[up->rows[i]];
  down->count = up->count;
  down->in = hidden;
  ck_spread(pool, down->w->cols, CK_COLUMNS, add_columns, down);
}

int ck_gated_mlp(const ck_matrix *up, const ck_matrix *down, const float *x, const float *g, int64_t tokens,
                 const float *thresholds, int64_t threshold_count, int64_t dense_from, const ck_pool *pool,
                 float *y) {
  if (bad(up) || bad(down) || up->rows != down->rows || tokens < 0) return CK_BAD_ARGUMENT;
  if (threshold_count != 1 && threshold_count != up->rows) return CK_BAD_ARGUMENT;
  const ck_path_table *path = ck_current();
  const int64_t step = threshold_count == 1 ? 0 : 1, n = up->rows;
  const int64_t extra = up->format == CK_U4 ? path->arranged(up->cols) : 0;
  int result = CK_OK;
  arena a;
  char *memory = a.at = malloc((size_t)(2 * padded(n + 1) + padded(down->cols) + padded(extra)) * sizeof(float));
  if (!memory) return CK_NO_MEMORY;
  int32_t *rows = indices(&a, n + 1);
  float *hidden = floats(&a, n + 1);
  work first = {path, up, rows, 0, tokens, x, NULL, NULL, 0};
  work second = {path, down, rows, 0, tokens, NULL, floats(&a, down->cols), y, 0};
  float *arranged = extra ? floats(&a, extra) : NULL;
  dense_from = dense_from_environment(dense_from);
  int64_t loud = 0;
  if (tokens > 1 || dense_from == 1) {
    first.count = list_any(g, tokens, thresholds, step, n, rows, &loud);
    if (dense_pays(mlp_cost(up, down), tokens, loud, first.count, dense_from)) {
      result = gated_mlp_dense(&first, &second, g, thresholds, step, pool);
      tokens = 0;
    }
  }
  for (int64_t t = 0; t < tokens; t++) {
    first.count = list_loud(g + t * n, thresholds, step, n, rows);
    second.out = y + t * down->cols;
    gated_mlp_token(&first, &second, x + t * up->cols, g + t * n, hidden, arranged, pool);
  }
  free(memory);
  return result;
}
