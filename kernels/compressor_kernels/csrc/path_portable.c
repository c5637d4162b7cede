/* The path for any processor. */
#define PATH_NAME "portable"
#define PATH_TABLE ck_portable
#include "vec_portable.h"
#include "body.h"
