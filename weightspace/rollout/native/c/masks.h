// What comparisons of vectors found, in short.
#pragma once
#include "vector.h"

// In how many lanes a comparison holds.
INLINE int64_t count_true(M which) {
#if defined(__AVX512F__) && REAL_IS_DOUBLE
    return __builtin_popcount(_mm512_test_epi64_mask((__m512i)which, (__m512i)which));
#elif defined(__AVX512F__)
    return __builtin_popcount(_mm512_test_epi32_mask((__m512i)which, (__m512i)which));
#else
    int64_t count = 0;
    for (int i = 0; i < WIDTH; i++) count -= which[i];
    return count;
#endif
}
