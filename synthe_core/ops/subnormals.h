/* Numbers too small to be normal count as zero between flush_subnormals and restore_subnormals, in the calling thread:
   a state that fades away would otherwise slow the processor a hundredfold. Nothing happens where x86 is not. */

#pragma once

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>

static inline unsigned flush_subnormals(void) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}

static inline void restore_subnormals(unsigned before) { _mm_setcsr(before); }

#else

static inline unsigned flush_subnormals(void) { return 0; }

static inline void restore_subnormals(unsigned before) { (void)before; }

#endif
