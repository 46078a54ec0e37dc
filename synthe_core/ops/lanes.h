// Eight floats at once. Each operation rounds as its scalar form does, and an addition of products is always fused.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define VECTOR 1
#endif

enum { LANES = 8 };

#ifdef VECTOR
typedef __m256 lanes;
static inline lanes fill(float v) { return _mm256_set1_ps(v); }
static inline lanes eight(const float *x) { return _mm256_loadu_ps(x); }
static inline void store(float *y, lanes v) { _mm256_storeu_ps(y, v); }
static inline lanes plus(lanes a, lanes b) { return _mm256_add_ps(a, b); }
static inline lanes times(lanes a, lanes b) { return _mm256_mul_ps(a, b); }
static inline lanes fma8(lanes a, lanes b, lanes c) { return _mm256_fmadd_ps(a, b, c); }
static inline float total(lanes v) {
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
#define IN_REGISTER(v) __asm__("" : "+x"(v))
#else
typedef struct { float v[LANES]; } lanes;
#define EACH(expression) lanes y; for (int l = 0; l < LANES; l++) y.v[l] = (expression); return y
static inline lanes fill(float v) { EACH(v); }
static inline lanes eight(const float *x) { lanes v; memcpy(v.v, x, sizeof v.v); return v; }
static inline void store(float *y, lanes v) { memcpy(y, v.v, sizeof v.v); }
static inline lanes plus(lanes a, lanes b) { EACH(a.v[l] + b.v[l]); }
static inline lanes times(lanes a, lanes b) { EACH(a.v[l] * b.v[l]); }
static inline lanes fma8(lanes a, lanes b, lanes c) { EACH(fmaf(a.v[l], b.v[l], c.v[l])); }
static inline float total(lanes v) {
    float t[4];
    for (int l = 0; l < 4; l++) t[l] = v.v[l] + v.v[l + 4];
    return (t[0] + t[2]) + (t[1] + t[3]);
}
#define IN_REGISTER(v) (void)0
#endif

// The first `count` < 8 floats, then zeros.
static inline lanes rest_of(const float *x, int64_t count) {
    float part[LANES] = {0};
    memcpy(part, x, (size_t)count * sizeof(float));
    return eight(part);
}

static inline void store_rest(float *y, lanes v, int64_t count) {
    float part[LANES];
    store(part, v);
    memcpy(y, part, (size_t)count * sizeof(float));
}

// Eight floats of which `left` are there, or more.
static inline void put_lanes(float *y, lanes v, int64_t left) {
    if (left >= LANES) store(y, v);
    else store_rest(y, v, left);
}

static inline lanes get_lanes(const float *x, int64_t left) { return left >= LANES ? eight(x) : rest_of(x, left); }

static inline float dot(const float *a, const float *b, int64_t n) {
    lanes sum = fill(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum = fma8(eight(a + i), eight(b + i), sum);
    if (i < n) sum = fma8(rest_of(a + i, n - i), rest_of(b + i, n - i), sum);
    return total(sum);
}
