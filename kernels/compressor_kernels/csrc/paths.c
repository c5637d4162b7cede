/* Which code path this processor can run, and which one is in use. */
#include "paths.h"

#include <stdatomic.h>
#include <stdlib.h>

#if defined(CK_HAS_X86) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

/* Bits of a processor that the paths need. */
enum { HAS_AVX2 = 1, HAS_AVX512 = 2 };

#if defined(CK_HAS_X86) && defined(_MSC_VER)
static int features(void) {
  int leaf1[4], leaf7[4], found = 0;
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const int osxsave = leaf1[2] >> 27 & 1;
  const unsigned long long saved = osxsave ? _xgetbv(0) : 0;
  const int fma = leaf1[2] >> 12 & 1, f16c = leaf1[2] >> 29 & 1, avx2 = leaf7[1] >> 5 & 1;
  if ((saved & 0x6) == 0x6 && fma && f16c && avx2) found |= HAS_AVX2;
  const unsigned wide = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
  if (found && (saved & 0xe6) == 0xe6 && ((unsigned)leaf7[1] & wide) == wide) found |= HAS_AVX512;
  return found;
}
#elif defined(CK_HAS_X86)
static int features(void) {
  int found = 0;
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found |= HAS_AVX2;
  if (found && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found |= HAS_AVX512;
  return found;
}
#else
static int features(void) { return 0; }
#endif

static const struct {
  const ck_path_table *table;
  int needs;
} known[] = {
#if defined(CK_HAS_X86)
    {&ck_avx512, HAS_AVX512},
    {&ck_avx2, HAS_AVX2},
#elif defined(CK_HAS_NEON) /* every 64-bit Arm processor has it */
    {&ck_neon, 0},
#endif
    {&ck_portable, 0},
};

#define KNOWN ((int)(sizeof known / sizeof *known))

static _Atomic(const ck_path_table *) chosen;

const char *ck_path_name(int i, int *usable) {
  if (i < 0 || i >= KNOWN) return NULL;
  if (usable) *usable = (features() & known[i].needs) == known[i].needs;
  return known[i].table->name;
}

int ck_select_path(const char *name) {
  const int have = features(), any = !name || !*name;
  for (int i = 0; i < KNOWN; i++) {
    if ((have & known[i].needs) != known[i].needs) continue;
    if (!any && strcmp(name, known[i].table->name) != 0) continue;
    atomic_store(&chosen, known[i].table);
    return CK_OK;
  }
  return CK_NO_SUCH_PATH;
}

const ck_path_table *ck_current(void) {
  const ck_path_table *path = atomic_load(&chosen);
  if (path) return path;
  /* A name that this processor cannot run is refused where the library is loaded (ort.c, the Python package). */
  if (ck_select_path(getenv("COMPRESSOR_KERNELS_PATH")) != CK_OK) ck_select_path(NULL);
  return atomic_load(&chosen);
}

const char *ck_path(void) { return ck_current()->name; }
