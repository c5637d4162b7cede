/* The path for x86-64 processors with AVX2, FMA and F16C; compiled with those features on. */
#include "paths.h"

#if defined(CK_HAS_X86)
#define PATH_NAME "avx2"
#define PATH_TABLE ck_avx2
#include "vec_avx2.h"
#include "body.h"
#endif
