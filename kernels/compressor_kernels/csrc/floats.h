/* Rows of a float format: NAME, TYPE, LOAD and SCALAR say which. Included once for each of them. */

static ALWAYS void NAME(add_some)(int R, const ck_matrix *w, const int32_t *rows, const float *coef, int64_t at,
                                  int64_t count, int64_t from, int64_t to, float *y) {
  TAKE_ROWS(TYPE, R, at)
  int64_t n = from;
  for (; n + STEP <= to; n += STEP) {
    vf sum[PARTS];
    UNROLLED for (int p = 0; p < PARTS; p++) sum[p] = vf_load(y + n + p * VL);
    UNROLLED for (int r = 0; r < R; r++) {
      const vf c = vf_set1(coef[at + r]);
      PREFETCH(ahead[r] + n);
      if (sizeof(TYPE) == 4) PREFETCH(ahead[r] + n + STEP / 2);
      UNROLLED for (int p = 0; p < PARTS; p++) sum[p] = vf_fma(LOAD(row[r] + n + p * VL), c, sum[p]);
    }
    UNROLLED for (int p = 0; p < PARTS; p++) vf_store(y + n + p * VL, sum[p]);
  }
  for (; n < to; n++)
    for (int r = 0; r < R; r++) y[n] += coef[at + r] * SCALAR(row[r][n]);
}

static void NAME(add_rows)(const ck_matrix *w, const int32_t *rows, const float *coef, int64_t count, int64_t from,
                           int64_t to, float *scratch, float *y) {
  (void)scratch;
  memset(y + from, 0, (size_t)(to - from) * sizeof *y);
  int64_t at = 0;
  for (; at + ROWS <= count; at += ROWS) NAME(add_some)(ROWS, w, rows, coef, at, count, from, to, y);
  for (; at < count; at++) NAME(add_some)(1, w, rows, coef, at, count, from, to, y);
}

static ALWAYS void NAME(meet_some)(int R, const ck_matrix *w, const int32_t *rows, int64_t at, int64_t count,
                                   const float *x, float *out) {
  TAKE_ROWS(TYPE, R, at)
  vf sum[ROWS][2];
  UNROLLED for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = vf_zero();
  int64_t k = 0;
  for (; k + STEP <= w->cols; k += STEP) {
    UNROLLED for (int r = 0; r < R; r++) {
      PREFETCH(ahead[r] + k);
      if (sizeof(TYPE) == 4) PREFETCH(ahead[r] + k + STEP / 2);
    }
    UNROLLED for (int p = 0; p < PARTS; p++) {
      const vf input = vf_load(x + k + p * VL);
      UNROLLED for (int r = 0; r < R; r++) {
        sum[r][p % 2] = vf_fma(LOAD(row[r] + k + p * VL), input, sum[r][p % 2]);
      }
    }
  }
  UNROLLED for (int r = 0; r < R; r++) out[at + r] = vf_sum(vf_add(sum[r][0], sum[r][1]));
  for (; k < w->cols; k++)
    for (int r = 0; r < R; r++) out[at + r] += SCALAR(row[r][k]) * x[k];
}

static void NAME(meet_rows)(const ck_matrix *w, const int32_t *rows, int64_t count, const float *x, float *out) {
  int64_t at = 0;
  for (; at + ROWS <= count; at += ROWS) NAME(meet_some)(ROWS, w, rows, at, count, x, out);
  for (; at < count; at++) NAME(meet_some)(1, w, rows, at, count, x, out);
}

/* out = w[row, from..to) as floats. */
static void NAME(expand)(const ck_matrix *w, int64_t row, int64_t from, int64_t to, float *out) {
  const TYPE *p = (const TYPE *)w->data + row * w->pitch + from;
  const int64_t n = to - from;
  int64_t k = 0;
  for (; k + VL <= n; k += VL) vf_store(out + k, LOAD(p + k));
  for (; k < n; k++) out[k] = SCALAR(p[k]);
}

#undef NAME
#undef TYPE
#undef LOAD
#undef SCALAR
