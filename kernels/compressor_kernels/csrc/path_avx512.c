/* The path for x86-64 processors with AVX-512 F, BW, DQ and VL; compiled with those features on. */
#include "paths.h"

#if defined(CK_HAS_X86)
#define PATH_NAME "avx512"
#define PATH_TABLE ck_avx512
#include "vec_avx512.h"
#include "body.h"
#endif
