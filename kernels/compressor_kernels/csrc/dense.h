/* Products of many tokens with a list of rows. Weights are brought into cache as floats, a tile at a time, and every
 * token uses them there. */

static void expand(const ck_matrix *w, int64_t row, int64_t from, int64_t to, float *out) {
  switch (w->format) {
    case CK_F32: expand_f32(w, row, from, to, out); break;
    case CK_F16: expand_f16(w, row, from, to, out); break;
    case CK_BF16: expand_bf16(w, row, from, to, out); break;
    case CK_U8: expand_u8(w, row, from, to, out); break;
    default: expand_u4(w, row, from, to, out);
  }
}

/* A tile: so many rows, and so many columns in panels of two vectors. */
#define TILE_ROWS 128
#define TILE_COLUMNS CK_COLUMNS
#define PANEL (2 * VL)
/* Tokens whose sums stay in registers. */
#define TOKENS 6

/* c [M, PANEL] (row length ldc) += a [M, depth] (row length lda) . panel [depth, PANEL] */
static ALWAYS void add_panel_of(int M, const float *a, int64_t lda, const float *panel, int64_t depth, float *c,
                                int64_t ldc) {
  vf left[TOKENS], right[TOKENS];
  UNROLLED for (int m = 0; m < M; m++) {
    left[m] = vf_load(c + m * ldc);
    right[m] = vf_load(c + m * ldc + VL);
  }
  for (int64_t k = 0; k < depth; k++) {
    const vf first = vf_load(panel + k * PANEL), second = vf_load(panel + k * PANEL + VL);
    UNROLLED for (int m = 0; m < M; m++) {
      const vf input = vf_set1(a[m * lda + k]);
      left[m] = vf_fma(input, first, left[m]);
      right[m] = vf_fma(input, second, right[m]);
    }
  }
  UNROLLED for (int m = 0; m < M; m++) {
    vf_store(c + m * ldc, left[m]);
    vf_store(c + m * ldc + VL, right[m]);
  }
}

static void add_panel(int64_t tokens, const float *a, int64_t lda, const float *panel, int64_t depth, float *c,
                      int64_t ldc) {
  switch (tokens) {
    case 1: add_panel_of(1, a, lda, panel, depth, c, ldc); break;
    case 2: add_panel_of(2, a, lda, panel, depth, c, ldc); break;
    case 3: add_panel_of(3, a, lda, panel, depth, c, ldc); break;
    case 4: add_panel_of(4, a, lda, panel, depth, c, ldc); break;
    case 5: add_panel_of(5, a, lda, panel, depth, c, ldc); break;
    default: add_panel_of(TOKENS, a, lda, panel, depth, c, ldc);
  }
}

/* Lays w[rows[0..depth), from..to) out in panels; what a last panel has beyond `to` is 0. */
static void lay_out(const ck_matrix *w, const int32_t *rows, int64_t depth, int64_t from, int64_t to, float *panels) {
  float line[TILE_COLUMNS + PANEL] = {0};
  for (int64_t k = 0; k < depth; k++) {
    expand(w, rows[k], from, to, line);
    for (int64_t n = 0; n < to - from; n += PANEL) {
      float *p = panels + n * TILE_ROWS + k * PANEL;
      vf_store(p, vf_load(line + n));
      vf_store(p + VL, vf_load(line + n + VL));
    }
  }
}

static void add_tile(int64_t tokens, const float *a, int64_t lda, const float *panels, int64_t depth, int64_t from,
                     int64_t to, int64_t ldy, float *y) {
  for (int64_t n = 0; n < to - from; n += PANEL) {
    const int64_t width = to - from - n < PANEL ? to - from - n : PANEL;
    for (int64_t m = 0; m < tokens; m += TOKENS) {
      const int64_t some = tokens - m < TOKENS ? tokens - m : TOKENS;
      float *c = y + m * ldy + from + n;
      if (width == PANEL) {
        add_panel(some, a + m * lda, lda, panels + n * TILE_ROWS, depth, c, ldy);
        continue;
      }
      float edge[TOKENS * PANEL] = {0};
      add_panel(some, a + m * lda, lda, panels + n * TILE_ROWS, depth, edge, PANEL);
      for (int64_t t = 0; t < some; t++)
        for (int64_t j = 0; j < width; j++) c[t * ldy + j] += edge[t * PANEL + j];
    }
  }
}

static int dense_add(const ck_matrix *w, const int32_t *rows, int64_t count, const float *a, int64_t tokens,
                     int64_t from, int64_t to, float *y) {
  float *panels = malloc(sizeof *panels * TILE_ROWS * TILE_COLUMNS);
  if (!panels) return 0;
  for (int64_t m = 0; m < tokens; m++) memset(y + m * w->cols + from, 0, (size_t)(to - from) * sizeof *y);
  for (int64_t n = from; n < to; n += TILE_COLUMNS) {
    const int64_t end = n + TILE_COLUMNS < to ? n + TILE_COLUMNS : to;
    for (int64_t k = 0; k < count; k += TILE_ROWS) {
      const int64_t depth = count - k < TILE_ROWS ? count - k : TILE_ROWS;
      lay_out(w, rows + k, depth, n, end, panels);
      add_tile(tokens, a + k, count, panels, depth, n, end, w->cols, y);
    }
  }
  free(panels);
  return 1;
}

/* Inputs met at a time; rows and tokens whose sums stay in registers. */
#define DEPTH 512
#define MEET_ROWS 3
#define MEET_TOKENS 4

/* out[t, r] (row length ldo) += w[r] . x[t], for R rows and T tokens */
static ALWAYS void meet_tile_of(int R, int T, const float *const *row, const float *x, int64_t ldx, int64_t depth,
                                float *out, int64_t ldo) {
  vf sum[MEET_ROWS][MEET_TOKENS];
  UNROLLED for (int r = 0; r < R; r++) UNROLLED for (int t = 0; t < T; t++) sum[r][t] = vf_zero();
  int64_t k = 0;
  for (; k + VL <= depth; k += VL) {
    vf weight[MEET_ROWS];
    UNROLLED for (int r = 0; r < R; r++) weight[r] = vf_load(row[r] + k);
    UNROLLED for (int t = 0; t < T; t++) {
      const vf input = vf_load(x + t * ldx + k);
      UNROLLED for (int r = 0; r < R; r++) sum[r][t] = vf_fma(weight[r], input, sum[r][t]);
    }
  }
  UNROLLED for (int r = 0; r < R; r++) {
    UNROLLED for (int t = 0; t < T; t++) {
      float rest = vf_sum(sum[r][t]);
      for (int64_t j = k; j < depth; j++) rest += row[r][j] * x[t * ldx + j];
      out[t * ldo + r] += rest;
    }
  }
}

static void meet_tile(int64_t some, int64_t tokens, const float *const *row, const float *x, int64_t ldx,
                      int64_t depth, float *out, int64_t ldo) {
  int64_t t = 0;
  for (; t + MEET_TOKENS <= tokens; t += MEET_TOKENS) {
    if (some == MEET_ROWS)
      meet_tile_of(MEET_ROWS, MEET_TOKENS, row, x + t * ldx, ldx, depth, out + t * ldo, ldo);
    else
      for (int64_t r = 0; r < some; r++)
        meet_tile_of(1, MEET_TOKENS, row + r, x + t * ldx, ldx, depth, out + t * ldo + r, ldo);
  }
  for (; t < tokens; t++) {
    if (some == MEET_ROWS)
      meet_tile_of(MEET_ROWS, 1, row, x + t * ldx, ldx, depth, out + t * ldo, ldo);
    else
      for (int64_t r = 0; r < some; r++) meet_tile_of(1, 1, row + r, x + t * ldx, ldx, depth, out + t * ldo + r, ldo);
  }
}

static void dense_meet(const ck_matrix *w, const int32_t *rows, int64_t count, const float *x, int64_t tokens,
                      int64_t from, int64_t to, float *out) {
  float tile[MEET_ROWS][DEPTH];
  for (int64_t t = 0; t < tokens; t++) memset(out + t * count + from, 0, (size_t)(to - from) * sizeof *out);
  for (int64_t j = from; j < to; j += MEET_ROWS) {
    const int64_t some = to - j < MEET_ROWS ? to - j : MEET_ROWS;
    for (int64_t k = 0; k < w->cols; k += DEPTH) {
      const int64_t end = k + DEPTH < w->cols ? k + DEPTH : w->cols;
      const float *row[MEET_ROWS] = {0};
      for (int64_t r = 0; r < some; r++) {
        row[r] = tile[r];
        if (w->format == CK_F32)
          row[r] = (const float *)w->data + rows[j + r] * w->pitch + k;
        else
          expand(w, rows[j + r], k, end, tile[r]);
      }
      meet_tile(some, tokens, row, x + k, w->cols, end - k, out + j, count);
    }
  }
}
