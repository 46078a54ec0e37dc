/* Compiles the file named by SELF (its path from this folder) once for every way in which values are stored:

       function_float      KIND float      REAL float
       function_bfloat16   KIND bfloat16   REAL float
       function_double     KIND double     REAL double

   KIND is how values are stored, REAL what they are computed in; LOAD and STORE go from one to the other, EXP is e^x
   in REAL, and NAME(function) is the name for this kind. */

#pragma once

#include <math.h>
#include <stdint.h>

#include "bfloat16.h"
#include "exponential.h"

#define SAME(x) (x)

#define KIND float
#define REAL float
#define EXP exp_float
#define LOAD SAME
#define STORE SAME
#define NAME(function) function##_float
#include SELF
#undef KIND
#undef LOAD
#undef STORE
#undef NAME

#define KIND bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#define NAME(function) function##_bfloat16
#include SELF
#undef KIND
#undef REAL
#undef EXP
#undef LOAD
#undef STORE
#undef NAME

#define KIND double
#define REAL double
#define EXP exp
#define LOAD SAME
#define STORE SAME
#define NAME(function) function##_double
#include SELF
