/* Rows of CK_U8: bytes, with a scale and a zero point for each 32 of them or for the whole row. */

/* The numbers of one quantized row; block b has scale[b * step] and zero[b * zero_step]. */
typedef struct {
  const float *scale;
  const uint8_t *zero;
  const float *ahead; /* the scales of the row that comes later */
  int64_t step, zero_step;
} grid;

static inline grid grid_of(const ck_matrix *w, int64_t row, int64_t later) {
  grid g;
  g.step = w->blocks > 1;
  g.zero_step = w->one_zero ? 0 : g.step;
  g.scale = w->scale + row * w->blocks;
  g.ahead = w->scale + later * w->blocks;
  g.zero = w->one_zero ? w->zero : w->zero + row * w->blocks;
  return g;
}

static ALWAYS void add_some_u8(int R, const ck_matrix *w, const int32_t *rows, const float *coef, int64_t at,
                               int64_t count, int64_t from, int64_t to, float *y) {
  TAKE_ROWS(uint8_t, R, at)
  grid g[ROWS];
  UNROLLED for (int r = 0; r < R; r++) g[r] = grid_of(w, rows[at + r], rows[later(at, R, r, count)]);
  int64_t n = from;
  for (; n + STEP <= to; n += STEP) {
    const int64_t block = n / CK_BLOCK;
    vf sum[PARTS];
    UNROLLED for (int p = 0; p < PARTS; p++) sum[p] = vf_load(y + n + p * VL);
    UNROLLED for (int r = 0; r < R; r++) {
      const vf c = vf_set1(coef[at + r] * g[r].scale[block * g[r].step]);
      const vi zero = vi_set1(g[r].zero[block * g[r].zero_step]);
      PREFETCH(ahead[r] + n);
      PREFETCH(g[r].ahead + block * g[r].step);
      UNROLLED for (int p = 0; p < PARTS; p++) sum[p] = vf_fma(vf_from_u8(row[r] + n + p * VL, zero), c, sum[p]);
    }
    UNROLLED for (int p = 0; p < PARTS; p++) vf_store(y + n + p * VL, sum[p]);
  }
  for (; n < to; n++) {
    const int64_t block = n / CK_BLOCK;
    for (int r = 0; r < R; r++)
      y[n] += coef[at + r] * g[r].scale[block * g[r].step] * (float)(row[r][n] - g[r].zero[block * g[r].zero_step]);
  }
}

static void add_rows_u8(const ck_matrix *w, const int32_t *rows, const float *coef, int64_t count, int64_t from,
                        int64_t to, float *scratch, float *y) {
  (void)scratch;
  memset(y + from, 0, (size_t)(to - from) * sizeof *y);
  int64_t at = 0;
  for (; at + ROWS <= count; at += ROWS) add_some_u8(ROWS, w, rows, coef, at, count, from, to, y);
  for (; at < count; at++) add_some_u8(1, w, rows, coef, at, count, from, to, y);
}

static ALWAYS void meet_some_u8(int R, const ck_matrix *w, const int32_t *rows, int64_t at, int64_t count,
                                const float *x, float *out) {
  TAKE_ROWS(uint8_t, R, at)
  grid g[ROWS];
  vf sum[ROWS];
  UNROLLED for (int r = 0; r < R; r++) {
    g[r] = grid_of(w, rows[at + r], rows[later(at, R, r, count)]);
    sum[r] = vf_zero();
  }
  int64_t k = 0;
  for (; k + STEP <= w->cols; k += STEP) {
    const int64_t block = k / CK_BLOCK;
    UNROLLED for (int r = 0; r < R; r++) {
      const vi zero = vi_set1(g[r].zero[block * g[r].zero_step]);
      vf part = vf_mul(vf_from_u8(row[r] + k, zero), vf_load(x + k));
      PREFETCH(ahead[r] + k);
      PREFETCH(g[r].ahead + block * g[r].step);
      UNROLLED for (int p = 1; p < PARTS; p++) {
        part = vf_fma(vf_from_u8(row[r] + k + p * VL, zero), vf_load(x + k + p * VL), part);
      }
      sum[r] = vf_fma(part, vf_set1(g[r].scale[block * g[r].step]), sum[r]);
    }
  }
  UNROLLED for (int r = 0; r < R; r++) out[at + r] = vf_sum(sum[r]);
  for (; k < w->cols; k++) {
    const int64_t block = k / CK_BLOCK;
    for (int r = 0; r < R; r++)
      out[at + r] += x[k] * g[r].scale[block * g[r].step] * (float)(row[r][k] - g[r].zero[block * g[r].zero_step]);
  }
}

static void meet_rows_u8(const ck_matrix *w, const int32_t *rows, int64_t count, const float *x, float *out) {
  int64_t at = 0;
  for (; at + ROWS <= count; at += ROWS) meet_some_u8(ROWS, w, rows, at, count, x, out);
  for (; at < count; at++) meet_some_u8(1, w, rows, at, count, x, out);
}

/* out = w[row, from..to) as floats; `from` is a multiple of CK_BLOCK. */
static void expand_u8(const ck_matrix *w, int64_t row, int64_t from, int64_t to, float *out) {
  const uint8_t *codes = (const uint8_t *)w->data + row * w->pitch;
  const grid g = grid_of(w, row, row);
  for (int64_t n = from; n < to; n += CK_BLOCK) {
    const int64_t block = n / CK_BLOCK, end = n + CK_BLOCK < to ? n + CK_BLOCK : to;
    const float scale = g.scale[block * g.step];
    const int zero = g.zero[block * g.zero_step];
    for (int64_t j = n; j < end; j++) out[j - from] = (float)(codes[j] - zero) * scale;
  }
}
