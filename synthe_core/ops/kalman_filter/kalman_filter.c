/* The diagonal Kalman filter and its gradient, one pass over memory each.

   Arrays are [B, T, D]. A task is one row of the batch and one block of channels; the state of the token before is the
   row just written, still in the first-level cache. Transition and process noise are read with their own strides, 0
   where one value serves all rows or all tokens. The compiler vectorises over channels. */

#ifndef REAL

#include <stdint.h>

#include "../subnormals.h"

#define BLOCK 256 /* channels a task: fixed, so that sums over channels do not depend on the number of threads */
const int64_t channels_a_task = BLOCK;

/* Elements from one row of the batch, and from one token, to the next. */
typedef struct {
    int64_t row, token;
} stride;

#define REAL float
#define NAME(function) function##_float
#include "kalman_filter.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(function) function##_double
#include "kalman_filter.c"

#else

/* active [B, T] bytes or NULL; surprise and confidence [blocks, B, T]: sums over the channels of each block. */
void NAME(filter)(const REAL *observation, const REAL *transition, const REAL *process, const REAL *noise,
                  const REAL *mean_first, const REAL *variance_first, const uint8_t *active, REAL *mean,
                  REAL *variance, REAL *surprise, REAL *confidence, int64_t B, int64_t T, int64_t D, stride a_stride,
                  stride q_stride) {
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, block = task % blocks, first = block * BLOCK;
        const int64_t width = D - first < BLOCK ? D - first : BLOCK;
        const unsigned mode = flush_subnormals();
        for (int64_t t = 0; t < T; t++) {
            const int64_t at = (b * T + t) * D + first, entry = (block * B + b) * T + t;
            const REAL *restrict m = t ? mean + at - D : mean_first + b * D + first;
            const REAL *restrict P = t ? variance + at - D : variance_first + b * D + first;
            REAL *restrict m_out = mean + at, *restrict P_out = variance + at;
            if (active && !active[b * T + t]) {
                for (int64_t d = 0; d < width; d++) m_out[d] = m[d], P_out[d] = P[d];
                surprise[entry] = 0;
                confidence[entry] = width;
                continue;
            }
            const REAL *restrict a = transition + b * a_stride.row + t * a_stride.token + first;
            const REAL *restrict q = process + b * q_stride.row + t * q_stride.token + first;
            const REAL *restrict z = observation + at, *restrict r = noise + at;
            REAL surprised = 0, confident = 0;
#pragma omp simd reduction(+ : surprised, confident)
            for (int64_t d = 0; d < width; d++) {
                const REAL predicted = a[d] * m[d];
                const REAL prior = a[d] * a[d] * P[d] + q[d];
                const REAL inverse = 1 / (prior + r[d]);
                const REAL gain = prior * inverse;
                const REAL innovation = z[d] - predicted;
                m_out[d] = predicted + gain * innovation;
                P_out[d] = r[d] * gain;
                surprised += innovation * innovation * inverse;
                confident += r[d] * inverse;
            }
            surprise[entry] = surprised;
            confidence[entry] = confident;
        }
        restore_subnormals(mode);
    }
}

/* *_given: gradients of the outputs, NULL for none; those of surprise and confidence [B, T] are per channel already.
   transition_grad and process_grad are added to: [B, T, D] with strides as given, or [B, D] with token stride 0. */
void NAME(filter_back)(const REAL *observation, const REAL *transition, const REAL *process, const REAL *noise,
                       const REAL *mean_first, const REAL *variance_first, const uint8_t *active, const REAL *mean,
                       const REAL *variance, const REAL *mean_given, const REAL *variance_given,
                       const REAL *surprise_given, const REAL *confidence_given, REAL *observation_grad,
                       REAL *transition_grad, REAL *process_grad, REAL *noise_grad, REAL *mean_first_grad,
                       REAL *variance_first_grad, int64_t B, int64_t T, int64_t D, stride a_stride, stride q_stride,
                       stride a_grad_stride, stride q_grad_stride) {
    const int64_t blocks = (D + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(static)
    for (int64_t task = 0; task < B * blocks; task++) {
        const int64_t b = task / blocks, first = task % blocks * BLOCK;
        const int64_t width = D - first < BLOCK ? D - first : BLOCK;
        const unsigned mode = flush_subnormals();
        REAL m_carried[BLOCK], P_carried[BLOCK], zeros[BLOCK]; /* carried: gradients that come from later tokens */
        for (int64_t d = 0; d < width; d++) m_carried[d] = P_carried[d] = zeros[d] = 0;
        for (int64_t t = T - 1; t >= 0; t--) {
            const int64_t at = (b * T + t) * D + first;
            const REAL *restrict m_given = mean_given ? mean_given + at : zeros;
            const REAL *restrict P_given = variance_given ? variance_given + at : zeros;
            REAL *restrict z_grad = observation_grad + at, *restrict r_grad = noise_grad + at;
            if (active && !active[b * T + t]) {
                for (int64_t d = 0; d < width; d++) {
                    m_carried[d] += m_given[d];
                    P_carried[d] += P_given[d];
                    z_grad[d] = r_grad[d] = 0;
                }
                continue;
            }
            const REAL *restrict m = t ? mean + at - D : mean_first + b * D + first;
            const REAL *restrict P = t ? variance + at - D : variance_first + b * D + first;
            const REAL *restrict a = transition + b * a_stride.row + t * a_stride.token + first;
            const REAL *restrict q = process + b * q_stride.row + t * q_stride.token + first;
            const REAL *restrict z = observation + at, *restrict r = noise + at;
            REAL *restrict a_grad = transition_grad + b * a_grad_stride.row + t * a_grad_stride.token + first;
            REAL *restrict q_grad = process_grad + b * q_grad_stride.row + t * q_grad_stride.token + first;
            const REAL of_surprise = surprise_given ? surprise_given[b * T + t] : 0;
            const REAL of_confidence = confidence_given ? confidence_given[b * T + t] : 0;
#pragma omp simd
            for (int64_t d = 0; d < width; d++) {
                const REAL prior = a[d] * a[d] * P[d] + q[d];
                const REAL inverse = 1 / (prior + r[d]);
                const REAL gain = prior * inverse, retained = r[d] * inverse;
                const REAL innovation = z[d] - a[d] * m[d];
                const REAL of_mean = m_given[d] + m_carried[d], of_variance = P_given[d] + P_carried[d];
                const REAL of_error = of_surprise * innovation * inverse; /* half of the gradient of e through surprise */
                const REAL of_total = -of_error * innovation * inverse;   /* and the gradient of S */
                const REAL of_gain = of_mean * innovation - of_confidence;
                const REAL of_predicted = of_mean * retained - 2 * of_error;
                const REAL of_prior = of_gain * retained * inverse + of_variance * retained * retained + of_total;
                z_grad[d] = of_mean * gain + 2 * of_error;
                r_grad[d] = of_variance * gain * gain - of_gain * gain * inverse + of_total;
                a_grad[d] += of_predicted * m[d] + 2 * a[d] * P[d] * of_prior;
                q_grad[d] += of_prior;
                m_carried[d] = a[d] * of_predicted;
                P_carried[d] = a[d] * a[d] * of_prior;
            }
        }
        for (int64_t d = 0; d < width; d++) {
            mean_first_grad[b * D + first + d] = m_carried[d];
            variance_first_grad[b * D + first + d] = P_carried[d];
        }
        restore_subnormals(mode);
    }
}

#endif
