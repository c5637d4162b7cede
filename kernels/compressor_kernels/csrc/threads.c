/* Pieces of one product for several threads. Each value is computed by one thread in one order, so that results do not
 * depend on how many there are. */
#include "paths.h"

#include <stdatomic.h>

#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#else
#define THREAD_LOCAL _Thread_local
#endif

/* A pool does not tell how many threads it has. The first products, and every so many later ones, are cut into many
 * pieces, and the threads that come to take them are counted; the others are cut into a few pieces for each of those. */
#define FIRST_PRODUCTS 4
#define PRODUCTS_BETWEEN 64
#define PIECES_TO_COUNT 32
#define PIECES_PER_THREAD 2

typedef struct {
  void (*task)(void *, int64_t, int64_t);
  void *argument;
  int64_t units, piece;
  unsigned number;
  atomic_int workers;
} spread;

static atomic_uint products;
static THREAD_LOCAL unsigned seen;

static void run_piece(void *argument, size_t index) {
  spread *s = argument;
  if (seen != s->number) {
    seen = s->number;
    atomic_fetch_add(&s->workers, 1);
  }
  const int64_t from = (int64_t)index * s->piece;
  const int64_t to = from + s->piece < s->units ? from + s->piece : s->units;
  s->task(s->argument, from, to);
}

void ck_spread(const ck_pool *pool, int64_t units, int64_t align,
               void (*task)(void *argument, int64_t from, int64_t to), void *argument) {
  const int64_t most = (units + align - 1) / align;
  int64_t pieces = 1;
  int counting = 0;
  if (pool && most > 1) {
    const int product = ++*pool->products;
    counting = product <= FIRST_PRODUCTS || product % PRODUCTS_BETWEEN == 0;
    pieces = counting ? PIECES_TO_COUNT : *pool->threads > 1 ? PIECES_PER_THREAD * *pool->threads : 1;
    if (pieces > most) pieces = most;
  }
  if (pieces <= 1) {
    if (units > 0) task(argument, 0, units);
    return;
  }
  spread s = {task, argument, units, ((most + pieces - 1) / pieces) * align, 0, 0};
  s.number = atomic_fetch_add(&products, 1) + 1;
  pool->run(pool->self, run_piece, (size_t)((units + s.piece - 1) / s.piece), &s);
  const int workers = atomic_load(&s.workers);
  if (counting && workers > *pool->threads) *pool->threads = workers;
}
