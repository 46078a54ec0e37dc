// y = W x of float32 rows: each number is eight partial sums over the columns, added in one order.
// A row's result does not depend on the rows or outputs beside it.

#pragma once

#include "../lanes.h"

#define FLOAT_TILE(name, R, C)                                                                                         \
    static void name(const float *w, const float *x, int64_t columns, float *y, int64_t stride) {                      \
        lanes sum[R][C], row[R];                                                                                       \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int c = 0; c < C; c++) sum[r][c] = fill(0);                                                           \
        for (int64_t i = 0; i < columns; i += LANES) {                                                                 \
            int64_t left = columns - i;                                                                                \
            for (int r = 0; r < R; r++)                                                                                \
                row[r] = left < LANES ? rest_of(x + r * columns + i, left) : eight(x + r * columns + i);               \
            for (int c = 0; c < C; c++) {                                                                              \
                lanes v = left < LANES ? rest_of(w + c * columns + i, left) : eight(w + c * columns + i);              \
                IN_REGISTER(v);                                                                                        \
                for (int r = 0; r < R; r++) sum[r][c] = fma8(v, row[r], sum[r][c]);                                    \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int c = 0; c < C; c++) y[r * stride + c] = total(sum[r][c]);                                          \
    }
FLOAT_TILE(tile_4_3, 4, 3)
FLOAT_TILE(tile_4_1, 4, 1)
FLOAT_TILE(tile_1_8, 1, 8)
FLOAT_TILE(tile_1_1, 1, 1)

enum { FLOAT_OUTPUTS = 96 };  // outputs that all rows read before the next ones

// W [outputs, columns], x [rows, columns]; a row of y is `stride` long.
static inline void float_product(const float *w, const float *x, int64_t rows, int64_t columns, int64_t outputs,
                                 float *y, int64_t stride) {
    int64_t spans = (outputs + FLOAT_OUTPUTS - 1) / FLOAT_OUTPUTS;
#pragma omp parallel for schedule(static) if (spans > 1)
    for (int64_t s = 0; s < spans; s++) {
        int64_t first = s * FLOAT_OUTPUTS, last = first + FLOAT_OUTPUTS < outputs ? first + FLOAT_OUTPUTS : outputs, r = 0;
        for (; r + 4 <= rows; r += 4) {
            int64_t o = first;
            for (; o + 3 <= last; o += 3) tile_4_3(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
            for (; o < last; o++) tile_4_1(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
        }
        for (; r < rows; r++) {
            int64_t o = first;
            for (; o + 8 <= last; o += 8) tile_1_8(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
            for (; o < last; o++) tile_1_1(w + o * columns, x + r * columns, columns, y + r * stride + o, stride);
        }
    }
}
