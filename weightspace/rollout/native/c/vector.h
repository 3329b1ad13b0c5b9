// Vectors of REAL (float or double) as the compiler's own extension, and the functions that cells apply to them.
// One source serves AVX-512, AVX2, NEON and plain SSE: the width is what the machine's flags promise.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define ACCUMULATORS 24
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#define ACCUMULATORS 12
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define ACCUMULATORS 24
#else
#define VECTOR_BYTES 16
#define ACCUMULATORS 12
#endif

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Before a loop whose number of rounds, at most n, is known once its function is in its place.
#define PRAGMA(words) _Pragma(#words)
#if defined(__clang__)
#define UNROLL(n) PRAGMA(clang loop unroll(full))
#else
#define UNROLL(n) PRAGMA(GCC unroll n)
#endif

#define INLINE static inline __attribute__((always_inline))

typedef REAL V __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef __typeof__((V){0} < (V){0}) M;  // integers as wide as REAL: what comparisons give
enum { WIDTH = VECTOR_BYTES / sizeof(REAL), PER_ROW = LANES / WIDTH };

// For each vector of a row, with its number v.
#define EACH_VECTOR UNROLL(8) for (int v = 0; v < PER_ROW; v++)

INLINE V load(const REAL *at) { return *(const V *)at; }
INLINE void store(REAL *at, V value) { *(V *)at = value; }
// The same, where a compiler that reads it from memory at each use would be slower.
INLINE V in_register(V value) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(value));
#elif defined(__SSE2__)
    __asm__("" : "+x"(value));
#elif defined(__aarch64__)
    __asm__("" : "+w"(value));
#endif
    return value;
}
// An address, where a compiler that keeps one for each row would run out of registers.
INLINE const REAL *in_one_register(const REAL *address) {
    __asm__("" : "+r"(address));
    return address;
}
INLINE V splat(REAL value) { return value - (V){0}; }
INLINE V pick(M which, V yes, V no) { return (V)((which & (M)yes) | (~which & (M)no)); }
INLINE V larger(V a, V b) { return pick(a > b, a, b); }

// exp(x) - 1 = 2^n p + (2^n - 1) with x = n ln 2 + r and p = exp(r) - 1 by its series on |r| <= ln(2) / 2.
typedef struct { V scale, part; } Split;

#define LOG2E 1.4426950408889634
#if REAL_IS_DOUBLE
#define LN2_HIGH 6.93145751953125e-1
#define LN2_LOW 1.42860682030941723212e-6
#define ROUNDER 6755399441055744.0
#define MANTISSA 52
#define EXP_LARGEST 709.0
#define TANH_LARGEST 22.0
#else
#define LN2_HIGH 0.693145751953125f
#define LN2_LOW 1.428606765330187e-6f
#define ROUNDER 12582912.0f
#define MANTISSA 23
#define EXP_LARGEST 88.0f
#define TANH_LARGEST 9.0f
#endif

INLINE Split split_exp(V x) {
    V shifted = x * (REAL)LOG2E + (REAL)ROUNDER;
    V n = shifted - (REAL)ROUNDER;
    V r = (x - n * (REAL)LN2_HIGH) - n * (REAL)LN2_LOW;
#if REAL_IS_DOUBLE
    V p = splat(1.0 / 6227020800.0);
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
#else
    V p = splat((REAL)(1.0 / 5040.0));
#endif
    p = p * r + (REAL)(1.0 / 720.0);
    p = p * r + (REAL)(1.0 / 120.0);
    p = p * r + (REAL)(1.0 / 24.0);
    p = p * r + (REAL)(1.0 / 6.0);
    p = p * r + (REAL)0.5;
    p = p * r * r + r;
    // The whole number n stands in the lowest bits of `shifted`; moved up, it is the exponent of 2^n.
    M exponent = ((M)shifted << MANTISSA) + (M)splat(1);
    return (Split){(V)exponent, p};
}

// The smaller of a bound and x, and the larger; NaN passes through. Where one instruction does it, that is used.
#if defined(__AVX512F__) && !REAL_IS_DOUBLE
INLINE V at_most(V x, REAL bound) { return (V)_mm512_min_ps((__m512)splat(bound), (__m512)x); }
INLINE V at_least(V x, REAL bound) { return (V)_mm512_max_ps((__m512)splat(bound), (__m512)x); }
#else
INLINE V at_most(V x, REAL bound) { return pick(x > splat(bound), splat(bound), x); }
INLINE V at_least(V x, REAL bound) { return pick(x < splat(bound), splat(bound), x); }
#endif

// Right wherever exp has a number, those below the normal ones included: 2^n may have none, two factors of it have.
INLINE V v_exp(V x) {
    Split s = split_exp(at_least(at_most(x, (REAL)(1.2 * EXP_LARGEST)), -(REAL)(1.3 * EXP_LARGEST)));
    M n = ((M)s.scale - (M)splat(1)) >> MANTISSA, half = n >> 1;
    V one = (V)((half << MANTISSA) + (M)splat(1)), other = (V)(((n - half) << MANTISSA) + (M)splat(1));
    return (one * s.part + one) * other;
}

#if REAL_IS_DOUBLE
INLINE V v_exp_of_negative(V x) { return v_exp(x); }
INLINE V v_sigmoid(V x) {
    Split s = split_exp(at_least(at_most(-x, (REAL)EXP_LARGEST), -(REAL)(EXP_LARGEST - 1)));
    return 1 / (s.scale * s.part + s.scale + 1);
}
INLINE V v_tanh(V x) {
    Split s = split_exp(at_least(at_most(x + x, 2 * (REAL)TANH_LARGEST), -2 * (REAL)TANH_LARGEST));
    V e = s.scale * s.part + (s.scale - 1);
    return e / (e + 2);
}
#else
// 2^t in fewer operations than v_exp needs: t = n + f with a whole number n, and 2^f is nearly a polynomial (by 8e-8,
// relative). What x log2(e) loses in t adds 1e-7 |x| to that.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
INLINE V quick_exp2(V t) {
    V f = (V)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF);  // 0 <= f < 1
    V p = splat(1.8775638775034914e-3f);
    p = p * f + 8.989371059378276e-3f;
    p = p * f + 5.582629206819785e-2f;
    p = p * f + 2.4015362582106423e-1f;
    p = p * f + 6.931530721848185e-1f;
    p = p * f + 9.999999250816625e-1f;
    return (V)_mm512_scalef_ps((__m512)p, (__m512)t);
}
#else
INLINE V quick_exp2(V t) {
    t = at_least(at_most(t, 127), -126);
    V shifted = t + (REAL)ROUNDER;
    V f = t - (shifted - (REAL)ROUNDER);  // |f| <= 1/2
    V p = splat(1.327638149893627e-3f);
    p = p * f + 9.675540609422545e-3f;
    p = p * f + 5.550713553403449e-2f;
    p = p * f + 2.4022119741889622e-1f;
    p = p * f + 6.931469668934135e-1f;
    p = p * f + 1.0000000716491153f;
    // The whole number stands in the lowest bits of `shifted`; moved up, it is added to the exponent.
    return (V)((M)p + ((M)shifted << MANTISSA));
}
#endif
INLINE V v_exp_of_negative(V x) { return quick_exp2(x * (REAL)LOG2E); }
INLINE V v_sigmoid(V x) { return 1 / (1 + quick_exp2(x * -(REAL)LOG2E)); }
// x P(x^2) / Q(x^2), nearest to tanh on |x| <= 7.75 (by 5e-9, relative). Beyond, it crosses 1 where tanh is 1 but for
// 1.5e-7, and is cut off there: a state that grows without bound multiplies what its derivative is above 0.
INLINE V v_tanh(V x) {
    x = at_least(at_most(x, (REAL)TANH_LARGEST), -(REAL)TANH_LARGEST);
    V s = x * x;
    V p = splat(1.5729327951596938e-8f), q = splat(8.714483978635102e-7f);
    p = p * s + 2.2217183896331618e-5f;
    q = q * s + 3.4422244712259805e-4f;
    p = p * s + 3.590079417853206e-3f;
    q = q * s + 2.6233865852385862e-2f;
    p = p * s + 1.3459785853865996e-1f;
    q = q * s + 4.679311477694099e-1f;
    p = p * s + 9.999999953974601e-1f;
    q = q * s + 1;
    return at_least(at_most(x * p / q, 1), -1);
}
#endif

#define BY_LANE(name, call)                             \
    INLINE V name(V x) {                                \
        for (int i = 0; i < WIDTH; i++) x[i] = call(x[i]); \
        return x;                                       \
    }
#if REAL_IS_DOUBLE
BY_LANE(v_log, log) BY_LANE(v_sqrt, sqrt) BY_LANE(v_sin, sin) BY_LANE(v_cos, cos) BY_LANE(v_log1p, log1p)
#else
BY_LANE(v_log, logf) BY_LANE(v_sqrt, sqrtf) BY_LANE(v_sin, sinf) BY_LANE(v_cos, cosf) BY_LANE(v_log1p, log1pf)
#endif

// Natural logarithm of positive normal numbers: x = m 2^e, log m = 2 atanh((m - 1) / (m + 1)) by its series.
INLINE V v_log_of_sum(V x) {
    M bits = (M)x;
    M e = (bits - (M)splat((REAL)0.70710678118654752)) >> MANTISSA;
    V m = (V)(bits - (e << MANTISSA)), s = (m - 1) / (m + 1), q = s * s;
#if REAL_IS_DOUBLE
    V p = splat(1.0 / 21);
    p = p * q + 1.0 / 19;
    p = p * q + 1.0 / 17;
    p = p * q + 1.0 / 15;
    p = p * q + 1.0 / 13;
    p = p * q + 1.0 / 11;
#else
    V p = splat((REAL)(1.0 / 11));
#endif
    p = p * q + (REAL)(1.0 / 9);
    p = p * q + (REAL)(1.0 / 7);
    p = p * q + (REAL)(1.0 / 5);
    p = p * q + (REAL)(1.0 / 3);
    V n = __builtin_convertvector(e, V);
    return n * (REAL)0.69314718055994531 + 2 * s * (p * q + 1);
}
