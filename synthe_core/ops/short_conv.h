/* Included by short_conv.c once for each REAL. Tap j of a channel weighs the input `taps - 1 - j` tokens ago.
   x has rows `x_row` and batches `x_batch` numbers apart; weight is [taps, channels]; every other tensor is
   contiguous: state [B, taps - 1, channels] and bias [channels] (NULL is zeros), y and gradients as their tensors. */

typedef struct {
    const REAL *x, *state, *bias;
    int64_t x_batch, x_row, channels, taps;
} NAME(Inputs);

static const REAL NAME(zeros)[BLOCK];

/* Input row t of batch row b at channel c; rows before 0 are the state's. */
static inline const REAL *NAME(row)(const NAME(Inputs) * in, int64_t b, int64_t t, int64_t c) {
    if (t >= 0) return in->x + b * in->x_batch + t * in->x_row + c;
    return in->state ? in->state + (b * (in->taps - 1) + t + in->taps - 1) * in->channels + c : NAME(zeros);
}

/* z = bias + Σ_j w_j x_{t - taps + 1 + j} for `width` channels. */
static inline void NAME(mix)(const NAME(Inputs) * in, const REAL *weight, int64_t b, int64_t t, int64_t c,
                             int64_t width, REAL *restrict z) {
    const REAL *bias = in->bias ? in->bias + c : NAME(zeros);
    if (in->taps == 4) { /* the usual size in one pass */
        const REAL *x0 = NAME(row)(in, b, t - 3, c), *x1 = NAME(row)(in, b, t - 2, c);
        const REAL *x2 = NAME(row)(in, b, t - 1, c), *x3 = NAME(row)(in, b, t, c);
        const REAL *w0 = weight + c, *w1 = w0 + in->channels, *w2 = w1 + in->channels, *w3 = w2 + in->channels;
#pragma omp simd
        for (int64_t i = 0; i < width; i++)
            z[i] = bias[i] + w0[i] * x0[i] + w1[i] * x1[i] + w2[i] * x2[i] + w3[i] * x3[i];
        return;
    }
    memcpy(z, bias, width * sizeof(REAL));
    for (int64_t j = 0; j < in->taps; j++) {
        const REAL *x = NAME(row)(in, b, t - in->taps + 1 + j, c), *w = weight + j * in->channels + c;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) z[i] += w[i] * x[i];
    }
}

void NAME(short_conv_forward)(int64_t batch, int64_t time, int64_t channels, int64_t taps, int64_t x_batch,
                              int64_t x_row, int64_t silu, const REAL *x, const REAL *weight, const REAL *state,
                              const REAL *bias, REAL *y) {
    const NAME(Inputs) in = {x, state, bias, x_batch, x_row, channels, taps};
    const int64_t blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for if (batch * time * channels > 65536)
    for (int64_t task = 0; task < batch * blocks; task++) {
        const int64_t b = task / blocks, c = task % blocks * BLOCK;
        const int64_t width = channels - c < BLOCK ? channels - c : BLOCK;
        for (int64_t t = 0; t < time; t++) {
            REAL z[BLOCK], *out = y + (b * time + t) * channels + c;
            NAME(mix)(&in, weight, b, t, c, width, z);
            if (silu) {
#pragma omp simd
                for (int64_t i = 0; i < width; i++) out[i] = z[i] / (1 + NAME(exponential)(-z[i]));
            } else {
                memcpy(out, z, width * sizeof(REAL));
            }
        }
    }
}

/* weight_grad is [batch, taps, channels], bias_grad [batch, channels] or NULL: the caller adds the rows.
   x_grad is [B, T, channels]. */
void NAME(short_conv_backward)(int64_t batch, int64_t time, int64_t channels, int64_t taps, int64_t x_batch,
                               int64_t x_row, int64_t silu, const REAL *x, const REAL *weight, const REAL *state,
                               const REAL *bias, const REAL *y_grad, REAL *x_grad, REAL *weight_grad,
                               REAL *state_grad, REAL *bias_grad) {
    const NAME(Inputs) in = {x, state, bias, x_batch, x_row, channels, taps};
    const int64_t blocks = (channels + BLOCK - 1) / BLOCK;
#pragma omp parallel for if (batch * time * channels > 65536)
    for (int64_t task = 0; task < batch * blocks; task++) {
        const int64_t b = task / blocks, c = task % blocks * BLOCK;
        const int64_t width = channels - c < BLOCK ? channels - c : BLOCK;
        REAL taps_grad[TAPS][BLOCK] = {{0}}, ring[TAPS][BLOCK] = {{0}}; /* ring: gradient of z at the last tokens */
        REAL total[BLOCK] = {0};                                        /* of it, for the bias */
        for (int64_t t = 0; t < time + taps - 1; t++) {
            REAL *dz = ring[t % taps];
            if (t < time) {
                REAL z[BLOCK];
                const REAL *dy = y_grad + (b * time + t) * channels + c;
                if (silu) {
                    NAME(mix)(&in, weight, b, t, c, width, z);
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) {
                        const REAL gate = 1 / (1 + NAME(exponential)(-z[i]));
                        dz[i] = dy[i] * gate * (1 + z[i] * (1 - gate));
                    }
                } else {
                    memcpy(dz, dy, width * sizeof(REAL));
                }
                if (bias_grad)
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) total[i] += dz[i];
                const REAL *xs[TAPS];
                for (int64_t j = 0; j < taps; j++) xs[j] = NAME(row)(&in, b, t - taps + 1 + j, c);
                if (taps == 4) {
                    const REAL *x0 = xs[0], *x1 = xs[1], *x2 = xs[2], *x3 = xs[3];
#pragma omp simd
                    for (int64_t i = 0; i < width; i++) {
                        taps_grad[0][i] += dz[i] * x0[i];
                        taps_grad[1][i] += dz[i] * x1[i];
                        taps_grad[2][i] += dz[i] * x2[i];
                        taps_grad[3][i] += dz[i] * x3[i];
                    }
                } else {
                    for (int64_t j = 0; j < taps; j++)
#pragma omp simd
                        for (int64_t i = 0; i < width; i++) taps_grad[j][i] += dz[i] * xs[j][i];
                }
            } else {
                memset(dz, 0, width * sizeof(REAL));
            }
            const int64_t s = t - taps + 1; /* every use of input s is behind us */
            REAL *dx;
            if (s >= 0)
                dx = x_grad + (b * time + s) * channels + c;
            else if (state_grad)
                dx = state_grad + (b * (taps - 1) + s + taps - 1) * channels + c;
            else
                continue;
            /* Input s was tap j of token s + taps - 1 - j; rows of the ring from before the first token are zero. */
            const REAL *late[TAPS];
            for (int64_t j = 0; j < taps; j++) late[j] = ring[(t - j + taps) % taps];
            if (taps == 4) {
                const REAL *w0 = weight + c, *w1 = w0 + channels, *w2 = w1 + channels, *w3 = w2 + channels;
                const REAL *z0 = late[0], *z1 = late[1], *z2 = late[2], *z3 = late[3];
#pragma omp simd
                for (int64_t i = 0; i < width; i++) dx[i] = w0[i] * z0[i] + w1[i] * z1[i] + w2[i] * z2[i] + w3[i] * z3[i];
                continue;
            }
            memset(dx, 0, width * sizeof(REAL));
            for (int64_t j = 0; j < taps; j++) {
                const REAL *w = weight + j * channels + c;
#pragma omp simd
                for (int64_t i = 0; i < width; i++) dx[i] += w[i] * late[j][i];
            }
        }
        for (int64_t j = 0; j < taps; j++)
            memcpy(weight_grad + (b * taps + j) * channels + c, taps_grad[j], width * sizeof(REAL));
        if (bias_grad) memcpy(bias_grad + b * channels + c, total, width * sizeof(REAL));
    }
}
