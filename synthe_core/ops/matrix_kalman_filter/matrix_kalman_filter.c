/* The Kalman filter with a covariance [N, N] in every head, and its gradient.

   A task is one row of the batch and LANES heads, whose matrices stand beside each other in local arrays [N][N][LANES]:
   every operation on a matrix's element is one on a vector of heads. Lanes beyond the last head compute on zeros
   with unit process noise, and are not stored. */

#ifndef REAL

#include <math.h>
#include <stdint.h>

#include "../subnormals.h"

#define LANES 16
#define MAX 16 /* largest N; native.py has the same number */
#define EACH_LANE _Pragma("omp simd") for (int lane = 0; lane < LANES; lane++)

#define REAL float
#define SQRT sqrtf
#define NAME(function) function##_float
#include "matrix_kalman_filter.c"
#undef REAL
#undef SQRT
#undef NAME
#define REAL double
#define SQRT sqrt
#define NAME(function) function##_double
#include "matrix_kalman_filter.c"

#else

typedef REAL NAME(vector)[LANES];
#define VECTOR NAME(vector)

/* The lanes of `count` numbers a head, from [heads, count] in memory; `rest` for the lanes without a head. */
static void NAME(load)(const REAL *from, int64_t heads, int64_t count, REAL rest, VECTOR *to) {
    for (int64_t i = 0; i < count; i++)
        for (int64_t lane = 0; lane < LANES; lane++) to[i][lane] = lane < heads ? from[lane * count + i] : rest;
}

static void NAME(store)(const VECTOR *from, int64_t heads, int64_t count, REAL *to) {
    for (int64_t lane = 0; lane < heads; lane++)
        for (int64_t i = 0; i < count; i++) to[lane * count + i] = from[i][lane];
}

/* The lower Cholesky factor of A [N, N], in place; what is above the diagonal stays. */
static void NAME(factor)(VECTOR *A, int64_t N) {
    for (int64_t j = 0; j < N; j++) {
        for (int64_t k = 0; k < j; k++)
            for (int64_t i = j; i < N; i++) EACH_LANE A[i * N + j][lane] -= A[i * N + k][lane] * A[j * N + k][lane];
        VECTOR inverse;
        EACH_LANE {
            const REAL root = SQRT(A[j * N + j][lane]);
            A[j * N + j][lane] = root;
            inverse[lane] = 1 / root;
        }
        for (int64_t i = j + 1; i < N; i++) EACH_LANE A[i * N + j][lane] *= inverse[lane];
    }
}

/* P after a token, from the one before it: L Lᵀ = a aᵀ P + Diag(q), G Gᵀ = I + Lᵀ J L, W = G⁻¹ Lᵀ, P = Wᵀ W. */
static void NAME(update)(VECTOR *P, const VECTOR *J, const VECTOR *a, const VECTOR *q, int64_t N) {
    VECTOR L[MAX * MAX], G[MAX * MAX], JL[MAX * MAX];
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) {
            EACH_LANE L[i * N + j][lane] = a[i][lane] * a[j][lane] * P[i * N + j][lane];
            if (i == j) EACH_LANE L[i * N + i][lane] += q[i][lane];
        }
    NAME(factor)(L, N);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) {
            VECTOR sum = {0};
            for (int64_t k = j; k < N; k++) EACH_LANE sum[lane] += J[i * N + k][lane] * L[k * N + j][lane];
            EACH_LANE JL[i * N + j][lane] = sum[lane];
        }
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j <= i; j++) {
            VECTOR sum = {0};
            for (int64_t k = i; k < N; k++) EACH_LANE sum[lane] += L[k * N + i][lane] * JL[k * N + j][lane];
            EACH_LANE G[i * N + j][lane] = sum[lane] + (i == j);
        }
    NAME(factor)(G, N);
    VECTOR *W = JL; /* no longer needed */
    for (int64_t j = 0; j < N; j++) /* column j of Lᵀ: row j of L, zero behind its diagonal */
        for (int64_t i = 0; i < N; i++) {
            VECTOR sum;
            EACH_LANE sum[lane] = i <= j ? L[j * N + i][lane] : 0;
            for (int64_t k = 0; k < i; k++) EACH_LANE sum[lane] -= G[i * N + k][lane] * W[k * N + j][lane];
            EACH_LANE W[i * N + j][lane] = sum[lane] / G[i * N + i][lane];
        }
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j <= i; j++) {
            VECTOR sum = {0};
            for (int64_t k = 0; k < N; k++) EACH_LANE sum[lane] += W[k * N + i][lane] * W[k * N + j][lane];
            EACH_LANE P[i * N + j][lane] = P[j * N + i][lane] = sum[lane];
        }
}

/* out = A x, or Aᵀ x where `transposed`; all [N, N] and [N]. */
static void NAME(apply)(const VECTOR *A, const VECTOR *x, int transposed, VECTOR *out, int64_t N) {
    for (int64_t i = 0; i < N; i++) {
        VECTOR sum = {0};
        for (int64_t j = 0; j < N; j++) {
            const REAL *row = A[transposed ? j * N + i : i * N + j];
            EACH_LANE sum[lane] += row[lane] * x[j][lane];
        }
        EACH_LANE out[i][lane] = sum[lane];
    }
}

/* out = A B, or Aᵀ B where `transposed`. */
static void NAME(product)(const VECTOR *A, const VECTOR *B, int transposed, VECTOR *out, int64_t N) {
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) {
            VECTOR sum = {0};
            for (int64_t k = 0; k < N; k++) {
                const REAL *left = A[transposed ? k * N + i : i * N + k];
                EACH_LANE sum[lane] += left[lane] * B[k * N + j][lane];
            }
            EACH_LANE out[i * N + j][lane] = sum[lane];
        }
}

/* x⁻ = a x and g = h - J x⁻. */
static void NAME(innovate)(const VECTOR *a, const VECTOR *x, const VECTOR *J, const VECTOR *h, VECTOR *predicted,
                           VECTOR *g, int64_t N) {
    for (int64_t i = 0; i < N; i++) EACH_LANE predicted[i][lane] = a[i][lane] * x[i][lane];
    NAME(apply)(J, predicted, 0, g, N);
    for (int64_t i = 0; i < N; i++) EACH_LANE g[i][lane] = h[i][lane] - g[i][lane];
}

void NAME(filter)(const REAL *precision, const REAL *information, const REAL *transition, const REAL *process,
                  const REAL *mean_first, const REAL *covariance_first, const uint8_t *active, REAL *mean,
                  REAL *covariance, int64_t B, int64_t T, int64_t H, int64_t N) {
    const int64_t blocks = (H + LANES - 1) / LANES, square = N * N;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, head = task % blocks * LANES;
        const int64_t heads = H - head < LANES ? H - head : LANES;
        const unsigned mode = flush_subnormals();
        VECTOR a[MAX], q[MAX], x[MAX], h[MAX], predicted[MAX], g[MAX], change[MAX], P[MAX * MAX], J[MAX * MAX];
        NAME(load)(transition + head * N, heads, N, 0, a);
        NAME(load)(process + head * N, heads, N, 1, q);
        NAME(load)(mean_first + (b * H + head) * N, heads, N, 0, x);
        NAME(load)(covariance_first + (b * H + head) * square, heads, square, 0, P);
        for (int64_t t = 0; t < T; t++) {
            const int64_t at = (b * T + t) * H + head;
            if (!active || active[b * T + t]) {
                NAME(load)(precision + at * square, heads, square, 0, J);
                NAME(load)(information + at * N, heads, N, 0, h);
                NAME(update)(P, J, a, q, N);
                NAME(innovate)(a, x, J, h, predicted, g, N);
                NAME(apply)(P, g, 0, change, N);
                for (int64_t i = 0; i < N; i++) EACH_LANE x[i][lane] = predicted[i][lane] + change[i][lane];
            }
            NAME(store)(x, heads, N, mean + at * N);
            NAME(store)(P, heads, square, covariance + at * square);
        }
        restore_subnormals(mode);
    }
}

/* Going back with M = I - P J: the gradients of P⁻ and J are Mᵀ P̄ M and -P P̄ P, those through x = x⁻ + P g besides.
   mean_given, covariance_given: gradients of the outputs, NULL for none. transition_grad and process_grad [B, H, N] are
   added to. */
void NAME(filter_back)(const REAL *precision, const REAL *information, const REAL *transition, const REAL *process,
                       const REAL *mean_first, const REAL *covariance_first, const uint8_t *active, const REAL *mean,
                       const REAL *covariance, const REAL *mean_given, const REAL *covariance_given,
                       REAL *precision_grad, REAL *information_grad, REAL *transition_grad, REAL *process_grad,
                       REAL *mean_first_grad, REAL *covariance_first_grad, int64_t B, int64_t T, int64_t H, int64_t N) {
    const int64_t blocks = (H + LANES - 1) / LANES, square = N * N;
    (void)process;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, head = task % blocks * LANES;
        const int64_t heads = H - head < LANES ? H - head : LANES;
        const unsigned mode = flush_subnormals();
        VECTOR a[MAX], x[MAX], h[MAX], predicted[MAX], g[MAX], of_x[MAX], of_g[MAX], of_predicted[MAX], of_a[MAX],
            of_q[MAX], given[MAX];
        VECTOR P[MAX * MAX], J[MAX * MAX], M[MAX * MAX], of_P[MAX * MAX], of_J[MAX * MAX], work[MAX * MAX];
        NAME(load)(transition + head * N, heads, N, 0, a);
        for (int64_t i = 0; i < N; i++) EACH_LANE of_x[i][lane] = of_a[i][lane] = of_q[i][lane] = 0;
        for (int64_t i = 0; i < square; i++) EACH_LANE of_P[i][lane] = 0;
        for (int64_t t = T - 1; t >= 0; t--) {
            const int64_t at = (b * T + t) * H + head, before = at - H;
            if (mean_given) {
                NAME(load)(mean_given + at * N, heads, N, 0, given);
                for (int64_t i = 0; i < N; i++) EACH_LANE of_x[i][lane] += given[i][lane];
            }
            if (covariance_given) {
                NAME(load)(covariance_given + at * square, heads, square, 0, work);
                for (int64_t i = 0; i < square; i++) EACH_LANE of_P[i][lane] += work[i][lane];
            }
            if (active && !active[b * T + t]) {
                for (int64_t i = 0; i < heads * N; i++) information_grad[at * N + i] = 0;
                for (int64_t i = 0; i < heads * square; i++) precision_grad[at * square + i] = 0;
                continue;
            }
            NAME(load)(precision + at * square, heads, square, 0, J);
            NAME(load)(information + at * N, heads, N, 0, h);
            NAME(load)(covariance + at * square, heads, square, 0, P);
            NAME(load)(t ? mean + before * N : mean_first + (b * H + head) * N, heads, N, 0, x);
            NAME(innovate)(a, x, J, h, predicted, g, N);
            NAME(apply)(P, of_x, 0, of_g, N);
            NAME(apply)(J, of_g, 1, of_predicted, N);
            for (int64_t i = 0; i < N; i++) EACH_LANE of_predicted[i][lane] = of_x[i][lane] - of_predicted[i][lane];
            for (int64_t i = 0; i < N; i++) /* P̄, symmetric, with what comes through x */
                for (int64_t j = 0; j <= i; j++) EACH_LANE {
                    const REAL outer = of_x[i][lane] * g[j][lane] + of_x[j][lane] * g[i][lane];
                    const REAL sum = of_P[i * N + j][lane] + of_P[j * N + i][lane];
                    of_P[i * N + j][lane] = of_P[j * N + i][lane] = (REAL)0.5 * (sum + outer);
                }
            NAME(product)(P, of_P, 0, work, N);
            NAME(product)(work, P, 0, of_J, N);
            for (int64_t i = 0; i < N; i++)
                for (int64_t j = 0; j < N; j++)
                    EACH_LANE of_J[i * N + j][lane] = -of_J[i * N + j][lane] - of_g[i][lane] * predicted[j][lane];
            NAME(store)(of_J, heads, square, precision_grad + at * square);
            NAME(store)(of_g, heads, N, information_grad + at * N);
            NAME(product)(P, J, 0, M, N);
            for (int64_t i = 0; i < N; i++)
                for (int64_t j = 0; j < N; j++) EACH_LANE M[i * N + j][lane] = (i == j) - M[i * N + j][lane];
            NAME(product)(of_P, M, 0, work, N);
            NAME(product)(M, work, 1, of_J, N); /* the gradient of P⁻ */
            NAME(load)(t ? covariance + before * square : covariance_first + (b * H + head) * square, heads, square, 0, P);
            for (int64_t i = 0; i < N; i++) {
                EACH_LANE {
                    of_q[i][lane] += of_J[i * N + i][lane];
                    of_a[i][lane] += of_predicted[i][lane] * x[i][lane];
                    of_x[i][lane] = a[i][lane] * of_predicted[i][lane];
                }
                for (int64_t j = 0; j < N; j++) EACH_LANE {
                    const REAL both = (REAL)0.5 * (P[i * N + j][lane] + P[j * N + i][lane]);
                    of_a[i][lane] += 2 * of_J[i * N + j][lane] * both * a[j][lane];
                    of_P[i * N + j][lane] = a[i][lane] * a[j][lane] * of_J[i * N + j][lane];
                }
            }
        }
        NAME(store)(of_x, heads, N, mean_first_grad + (b * H + head) * N);
        NAME(store)(of_P, heads, square, covariance_first_grad + (b * H + head) * square);
        NAME(store)(of_a, heads, N, transition_grad + (b * H + head) * N);
        NAME(store)(of_q, heads, N, process_grad + (b * H + head) * N);
        restore_subnormals(mode);
    }
}

#undef VECTOR

#endif
