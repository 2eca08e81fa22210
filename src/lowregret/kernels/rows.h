// The forward pieces of a layer that are no matrix products, for fp32 and bf16 rows: shared by training (`pieces.cpp`) and
// by a decoding step (`decoding.cpp`).

#pragma once

#include <cmath>
#include <cstdint>

#include "formats.h"

namespace {

constexpr int64_t SMALL = 1 << 15;  // elements that one thread does sooner than several could be woken

template <typename T>
void rms_norm(const T *h, int64_t h_stride, const T *weight, T *out, int64_t out_stride, float *inverse, int64_t rows,
              int64_t width, float eps, bool known) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const T *x = h + row * h_stride;
        T *y = out + row * out_stride;
        if (!known) {
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < width; c++) sum += load(x[c]) * load(x[c]);
            inverse[row] = 1.0f / std::sqrt(sum / float(width) + eps);
        }
        float factor = inverse[row];
#pragma omp simd
        for (int64_t c = 0; c < width; c++) store(y + c, load(x[c]) * factor * load(weight[c]));
    }
}

// Channel c is paired with c + half; `sign` -1 turns back.
template <typename T>
void rotate(const T *x, int64_t x_row, int64_t x_head, const T *cosine, const T *sine, T *out, int64_t out_row,
            int64_t out_head, int64_t rows, int64_t heads, int64_t channels, float sign) {
    int64_t half = channels / 2;
#pragma omp parallel for if (rows * heads * channels > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const T *cos = cosine + row * channels, *sin = sine + row * channels;
        for (int64_t head = 0; head < heads; head++) {
            const T *from = x + row * x_row + head * x_head;
            T *to = out + row * out_row + head * out_head;
#pragma omp simd
            for (int64_t c = 0; c < half; c++) {
                float first = load(from[c]), second = load(from[c + half]), turn = sign * load(sin[c]);
                store(to + c, first * load(cos[c]) - second * turn);
                store(to + c + half, second * load(cos[c + half]) + first * turn);
            }
        }
    }
}

template <typename T>
void swiglu(const T *gate, const T *up, T *out, int64_t out_stride, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const T *g = gate + row * width, *u = up + row * width;
        T *y = out + row * out_stride;
#pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float x = load(g[c]);
            store(y + c, x * sigmoid(x) * load(u[c]));
        }
    }
}

}  // namespace
