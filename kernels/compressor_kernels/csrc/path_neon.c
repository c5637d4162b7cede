/* The path for 64-bit Arm processors. */
#include "paths.h"

#if defined(CK_HAS_NEON)
#define PATH_NAME "neon"
#define PATH_TABLE ck_neon
#include "vec_neon.h"
#include "body.h"
#endif
