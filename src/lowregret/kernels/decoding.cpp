// The pieces of a decoding step that are bound by memory: products of few rows, attention over a cache, and the draw of a
// token from a row of logits.
//
// A matrix W [F, D] is packed once into panels of `PANEL` output channels, so that a product of few rows streams it in
// the order in which it is needed, in the format in which it is stored, and each thread its own panels. Rows are widened
// to fp32; a product and the adapter's part are summed in fp32 and rounded once. The formulas in torch stand in
// `models/packed.py`, `models/kv_cache.py` and `sampling/draw.py`; tests hold them equal. Compiled by `build.py`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "blocks.h"
#include "rows.h"
#ifdef __AVX512F__
#include <immintrin.h>
#endif

extern "C" int64_t ways();

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, FEW = 8;  // a block of rows times two vectors of sums, and two of weights, fit 32 registers
#else
constexpr int LANES = 8, FEW = 4;  // 16 registers
#endif
constexpr int PANEL = 2 * LANES;
constexpr int64_t MANY = 9;       // rows from which a panel of bf16 is multiplied by tiles
constexpr int64_t AHEAD = 12288;  // bytes of weights that are asked for ahead of their use: memory is far away

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef uint32_t words __attribute__((vector_size(LANES * 4)));

template <typename V, typename T>
inline V read(const T *at) {
    V value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline void write(float *at, lanes value) { std::memcpy(at, &value, sizeof value); }

// Weights of input channels d and d + 1 for the output channels of a panel. fp32 as it is; bf16 in words of which the
// lower half belongs to d and the upper half to d + 1, so that one shift or one mask widens a vector.
struct Pair {
    lanes first[2], second[2];
};

inline Pair read_pair(const float *panel, int64_t d) {
    const float *at = panel + d * PANEL;
    return {{read<lanes>(at), read<lanes>(at + LANES)}, {read<lanes>(at + PANEL), read<lanes>(at + PANEL + LANES)}};
}

inline Pair read_pair(const bf16 *panel, int64_t d) {
    const bf16 *at = panel + d * PANEL;
    words both[2] = {read<words>(at), read<words>(at + PANEL)};
    Pair pair;
    for (int half = 0; half < 2; half++) {
        words low = both[half] << 16, high = both[half] & 0xffff0000u;
        std::memcpy(&pair.first[half], &low, sizeof low);
        std::memcpy(&pair.second[half], &high, sizeof high);
    }
    return pair;
}

// Where W[f, d] stands in its panel.
inline int64_t place(const float *, int64_t f, int64_t d) { return d * PANEL + f; }

inline int64_t place(const bf16 *, int64_t f, int64_t d) {
    int64_t half = f / LANES, lane = f % LANES;
    return (d / 2) * (2 * PANEL) + half * PANEL + lane * 2 + d % 2;
}

inline int64_t even(int64_t depth) { return depth + depth % 2; }

template <typename T>
void pack(const T *weight, int64_t stride, T *packed, int64_t outputs, int64_t depth) {
    int64_t panels = (outputs + PANEL - 1) / PANEL, size = even(depth) * PANEL;
#pragma omp parallel for
    for (int64_t panel = 0; panel < panels; panel++) {
        T *to = packed + panel * size;
        std::memset(static_cast<void *>(to), 0, size * sizeof(T));
        int64_t own = std::min<int64_t>(PANEL, outputs - panel * PANEL);
        for (int64_t f = 0; f < own; f++) {
            const T *from = weight + (panel * PANEL + f) * stride;
            for (int64_t d = 0; d < depth; d++) to[place(to, f, d)] = from[d];
        }
    }
}

// ROWS rows of x [.., depth] times one panel, plus `part` where there is one, to `out` [ROWS, PANEL].
template <int ROWS, typename T>
inline void block_product(const float *x, int64_t depth, const T *panel, const float *part, int64_t part_stride,
                          float *out) {
    lanes sum[ROWS][2];
    for (int row = 0; row < ROWS; row++) sum[row][0] = sum[row][1] = lanes{};
    for (int64_t d = 0; d < depth; d += 2) {
        for (size_t line = 0; line < 2 * PANEL * sizeof(T); line += 64)
            __builtin_prefetch(reinterpret_cast<const char *>(panel + d * PANEL) + AHEAD + line, 0, 2);
        Pair pair = read_pair(panel, d);
        for (int row = 0; row < ROWS; row++) {
            float first = x[row * depth + d], second = x[row * depth + d + 1];
            sum[row][0] += first * pair.first[0];
            sum[row][1] += first * pair.first[1];
            sum[row][0] += second * pair.second[0];
            sum[row][1] += second * pair.second[1];
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int half = 0; half < 2; half++) {
            // Last, so that what is small is not summed onto what is large.
            if (part) sum[row][half] += read<lanes>(part + row * part_stride + half * LANES);
            write(out + row * PANEL + half * LANES, sum[row][half]);
        }
}

#ifdef HAS_DOTS
// The same of bf16 rows: a panel's words are an operand of AVX-512's dot product as they lie, so that nothing is widened.
template <int ROWS>
inline void block_product(const bf16 *x, int64_t depth, const bf16 *panel, const float *part, int64_t part_stride,
                          float *out) {
    __m512 sum[ROWS][2];
    for (int row = 0; row < ROWS; row++) sum[row][0] = sum[row][1] = _mm512_setzero_ps();
    for (int64_t d = 0; d < depth; d += 2) {
        const bf16 *at = panel + d * PANEL;
        for (int64_t line = 0; line < 2 * PANEL * 2; line += 64)
            __builtin_prefetch(reinterpret_cast<const char *>(at) + AHEAD + line, 0, 2);
        __m512bh left = (__m512bh)_mm512_loadu_si512(at), right = (__m512bh)_mm512_loadu_si512(at + PANEL);
        for (int row = 0; row < ROWS; row++) {
            int32_t both;
            std::memcpy(&both, x + row * depth + d, sizeof both);
            __m512bh factor = (__m512bh)_mm512_set1_epi32(both);
            sum[row][0] = _mm512_dpbf16_ps(sum[row][0], factor, left);
            sum[row][1] = _mm512_dpbf16_ps(sum[row][1], factor, right);
        }
    }
    for (int row = 0; row < ROWS; row++)
        for (int half = 0; half < 2; half++) {
            if (part) sum[row][half] += _mm512_loadu_ps(part + row * part_stride + half * LANES);
            _mm512_storeu_ps(out + row * PANEL + half * LANES, sum[row][half]);
        }
}

// What a product reads rows of T as.
template <typename T>
using Read = T;
#else
template <typename T>
using Read = float;
#endif

template <int ROWS, typename X, typename T>
inline void some_rows(int rows, const X *x, int64_t depth, const T *panel, const float *part, int64_t part_stride,
                      float *out) {
    if (rows == ROWS)
        block_product<ROWS>(x, depth, panel, part, part_stride, out);
    else if constexpr (ROWS > 1)
        some_rows<ROWS - 1>(rows, x, depth, panel, part, part_stride, out);
}

// A slot's adapter at one matrix: A [rank, depth] and s B^T [rank, outputs], fp32; rank 0 for none.
struct Adapter {
    const float *down, *up;
    int64_t rank;
};

// Rows that belong to one slot.
struct Rows {
    int64_t start, stop, slot;
};

// Lane k of the result is the sum of the lanes of parts[k].
inline lanes sums_of(lanes *parts) {
#ifdef __AVX512F__
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0),
                  odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    for (int number = LANES; number > 1; number /= 2)
        for (int k = 0; k < number; k += 2)
            parts[k / 2] = _mm512_permutex2var_ps(parts[k], even, parts[k + 1]) +
                           _mm512_permutex2var_ps(parts[k], odd, parts[k + 1]);
    return parts[0];
#else
    lanes sums;
    for (int k = 0; k < LANES; k++) {
        float sum = 0.0f;
        for (int lane = 0; lane < LANES; lane++) sum += parts[k][lane];
        sums[k] = sum;
    }
    return sums;
#endif
}

// part [ROWS, outputs] = s (x A^T) B^T, whose matrices are read once for all of these rows.
template <int ROWS>
void adapter_part(const float *x, int64_t x_row, int64_t depth, const Adapter &own, int64_t outputs, float *part,
                  int64_t part_row) {
    constexpr int RANKS = LANES / ROWS;  // as many sums at once as a vector has lanes
    thread_local std::vector<float> inner;
    inner.resize((own.rank + RANKS) * ROWS);
    for (int64_t r = 0; r < own.rank; r += RANKS) {
        const float *a[RANKS];
        for (int k = 0; k < RANKS; k++) a[k] = own.down + std::min<int64_t>(r + k, own.rank - 1) * depth;
        lanes sum[LANES] = {};
        int64_t d = 0;
        for (; d + LANES <= depth; d += LANES) {
            lanes columns[ROWS];
            for (int row = 0; row < ROWS; row++) columns[row] = read<lanes>(x + row * x_row + d);
            for (int k = 0; k < RANKS; k++)
                for (int row = 0; row < ROWS; row++) sum[k * ROWS + row] += columns[row] * read<lanes>(a[k] + d);
        }
        write(&inner[r * ROWS], sums_of(sum));
        for (; d < depth; d++)
            for (int k = 0; k < RANKS; k++)
                for (int row = 0; row < ROWS; row++) inner[(r + k) * ROWS + row] += x[row * x_row + d] * a[k][d];
    }
    int64_t f = 0;
    for (; f + PANEL <= outputs; f += PANEL) {
        lanes sum[ROWS][2] = {};
        for (int64_t r = 0; r < own.rank; r++) {
            const float *b = own.up + r * outputs + f;
            lanes first = read<lanes>(b), second = read<lanes>(b + LANES);
            for (int row = 0; row < ROWS; row++) {
                sum[row][0] += inner[r * ROWS + row] * first;
                sum[row][1] += inner[r * ROWS + row] * second;
            }
        }
        for (int row = 0; row < ROWS; row++)
            for (int half = 0; half < 2; half++) write(part + row * part_row + f + half * LANES, sum[row][half]);
    }
    for (int row = 0; row < ROWS; row++) {
        float *y = part + row * part_row;
        for (int64_t rest = f; rest < part_row; rest++) y[rest] = 0.0f;
        for (int64_t r = 0; r < own.rank; r++)
            for (int64_t rest = f; rest < outputs; rest++) y[rest] += inner[r * ROWS + row] * own.up[r * outputs + rest];
    }
}

// A matrix that rows are multiplied by: packed [outputs, depth]; a bias or none; where the product goes; a table of
// adapters or none.
template <typename T>
struct Matrix {
    const T *packed;
    int64_t outputs;
    const T *bias;
    T *y;
    int64_t y_row;
    const Adapter *adapters;
    const float *part = nullptr;  // of the adapters [rows, filled()]

    int64_t panels() const { return (outputs + PANEL - 1) / PANEL; }
    int64_t filled() const { return panels() * PANEL; }
};

// Of each row's own adapter at each matrix, zero for rows without one; at `part`, one matrix behind the other.
template <typename T>
void adapter_parts(const float *x, int64_t rows, int64_t depth, const Rows *blocks, int64_t num_blocks,
                   Matrix<T> *matrices, int64_t number, float *part) {
    for (int64_t m = 0; m < number; m++) {
        if (!matrices[m].adapters) continue;
        matrices[m].part = part;
        part += rows * matrices[m].filled();
    }
    int64_t x_row = even(depth);
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int64_t m = 0; m < number; m++) {
        for (int64_t index = 0; index < num_blocks; index++) {
            const Matrix<T> &matrix = matrices[m];
            if (!matrix.adapters) continue;
            const Rows &block = blocks[index];
            const Adapter none = {nullptr, nullptr, 0}, &own = block.slot < 0 ? none : matrix.adapters[block.slot];
            int64_t row = block.start, width = matrix.filled();
            float *to = const_cast<float *>(matrix.part);
            for (; row + 4 <= block.stop; row += 4)
                adapter_part<4>(x + row * x_row, x_row, depth, own, matrix.outputs, to + row * width, width);
            for (; row + 2 <= block.stop; row += 2)
                adapter_part<2>(x + row * x_row, x_row, depth, own, matrix.outputs, to + row * width, width);
            for (; row < block.stop; row++)
                adapter_part<1>(x + row * x_row, x_row, depth, own, matrix.outputs, to + row * width, width);
        }
    }
}

#ifdef HAS_TILES
// 32 rows of x (the second 16 only where there are that many) times a panel, to `out` [32, PANEL]. Of a panel's pairs of
// input channels 16 are a right operand as AMX takes it, its rows 128 bytes apart.
inline void tiles_product(const bf16 *x, int64_t depth, bool lower, const bf16 *panel, float *out) {
    __asm__ volatile("" ::: "memory");  // what was stored before is loaded as tiles
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t d = 0; d < depth; d += 32) {
        const bf16 *weights = panel + d * PANEL;
        for (int64_t line = 0; line < 32 * PANEL * 2; line += 64)
            __builtin_prefetch(reinterpret_cast<const char *>(weights) + AHEAD + line, 0, 2);
        _tile_loadd(6, weights, 4 * PANEL);
        _tile_loadd(7, weights + PANEL, 4 * PANEL);
        _tile_loadd(4, x + d, depth * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (lower) {
            _tile_loadd(5, x + 16 * depth + d, depth * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out, PANEL * 4);
    _tile_stored(1, out + LANES, PANEL * 4);
    if (lower) {
        _tile_stored(2, out + 16 * PANEL, PANEL * 4);
        _tile_stored(3, out + 16 * PANEL + LANES, PANEL * 4);
    }
}
#endif

// Whether so many rows go by tiles; the system is asked for them once.
template <typename T>
bool by_tiles(int64_t rows, int64_t depth) {
#ifdef HAS_TILES
    static const bool has = (ways() & 4) != 0;
    return has && std::is_same<T, bf16>::value && rows >= MANY && depth % 32 == 0;
#else
    (void)rows, (void)depth;
    return false;
#endif
}

// Rows of x side by side, `padded` channels each, widened or as they are; zeros behind their channels and up to `filled`
// rows.
template <typename To, typename T>
const To *gathered(const T *x, int64_t x_stride, int64_t rows, int64_t depth, int64_t padded, int64_t filled,
                   std::vector<To> &into) {
    into.resize(filled * padded);
    To *out = into.data();
#pragma omp parallel for if (rows * depth > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        To *to = out + row * padded;
        const T *from = x + row * x_stride;
        if constexpr (std::is_same<To, T>::value) {
            std::memcpy(to, from, depth * sizeof(T));
        } else {
#pragma omp simd
            for (int64_t d = 0; d < depth; d++) to[d] = load(from[d]);
        }
        std::fill(to + depth, to + padded, To{});
    }
    std::fill(out + rows * padded, out + filled * padded, To{});
    return out;
}

// Which panel of which matrix is the n-th of all.
template <typename T>
inline std::pair<const Matrix<T> *, int64_t> panel_of(const Matrix<T> *matrices, int64_t n) {
    for (; n >= matrices->panels(); matrices++) n -= matrices->panels();
    return {matrices, n};
}

// Sums [count, PANEL] of the rows from `start` on and a panel, rounded once before the bias and once behind it.
template <typename T>
inline void finish(const Matrix<T> &matrix, int64_t panel, int64_t start, int64_t count, const float *sums) {
    int64_t first = panel * PANEL, own = std::min<int64_t>(PANEL, matrix.outputs - first);
    for (int64_t row = 0; row < count; row++) {
        T *to = matrix.y + (start + row) * matrix.y_row + first;
#pragma omp simd
        for (int64_t f = 0; f < own; f++) store(to + f, sums[row * PANEL + f]);
        if (matrix.bias)
            for (int64_t f = 0; f < own; f++) store(to + f, load(to[f]) + load(matrix.bias[first + f]));
    }
}

// y = x W^T + s (x A^T) B^T + bias of every matrix, summed in fp32 and rounded once before the bias and once behind it.
template <typename T>
void products(const T *x, int64_t x_row, int64_t rows, int64_t depth, Matrix<T> *matrices, int64_t number,
              const Rows *blocks, int64_t num_blocks) {
    int64_t padded = even(depth), panels = 0, widths = 0;
    bool adapted = false;
    for (int64_t m = 0; m < number; m++) {
        panels += matrices[m].panels();
        widths += matrices[m].filled();
        adapted = adapted || matrices[m].adapters;
    }
    thread_local std::vector<float> wide, parts;
    if (adapted) {
        parts.resize(rows * widths);
        const float *in = gathered<float>(x, x_row, rows, depth, padded, rows, wide);
        adapter_parts(in, rows, depth, blocks, num_blocks, matrices, number, parts.data());
    }
#ifdef HAS_TILES
    if constexpr (std::is_same<T, bf16>::value) {
        if (by_tiles<T>(rows, depth)) {
            thread_local std::vector<bf16> dense;
            const bf16 *in = gathered<bf16>(x, x_row, rows, depth, depth, (rows + 31) / 32 * 32, dense);
#pragma omp parallel
            {
                alignas(64) float sums[32 * PANEL];
                Tiles::begin();
#pragma omp for schedule(static)
                for (int64_t n = 0; n < panels; n++) {
                    auto [matrix, panel] = panel_of(matrices, n);
                    const bf16 *weights = matrix->packed + panel * depth * PANEL;
                    for (int64_t start = 0; start < rows; start += 32) {
                        int64_t count = std::min<int64_t>(32, rows - start);
                        tiles_product(in + start * depth, depth, count > 16, weights, sums);
                        for (int64_t row = 0; matrix->part && row < count; row++) {
                            const float *part = matrix->part + (start + row) * matrix->filled() + panel * PANEL;
#pragma omp simd
                            for (int64_t f = 0; f < PANEL; f++) sums[row * PANEL + f] += part[f];
                        }
                        finish(*matrix, panel, start, count, sums);
                    }
                }
                Tiles::end();
            }
            return;
        }
    }
#endif
    thread_local std::vector<Read<T>> dense;
    const Read<T> *in = gathered<Read<T>>(x, x_row, rows, depth, padded, rows, dense);
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < panels; n++) {
        auto [matrix, panel] = panel_of(matrices, n);
        const T *weights = matrix->packed + panel * padded * PANEL;
        int64_t part_row = matrix->filled();
        float sums[FEW * PANEL];
        for (int64_t start = 0; start < rows; start += FEW) {
            int count = int(std::min<int64_t>(FEW, rows - start));
            const float *part = matrix->part ? matrix->part + start * part_row + panel * PANEL : nullptr;
            some_rows<FEW>(count, in + start * padded, padded, weights, part, part_row, sums);
            finish(*matrix, panel, start, count, sums);
        }
    }
}

constexpr int64_t AHEAD_PAST = 4096;  // bytes of keys and values that are asked for ahead
constexpr int64_t STRIP = 4 * LANES;  // channels of LANES keys that are multiplied at once

// Where a channel stands in a widened row: of pairs of bf16 those of the lower halves first.
inline int64_t spot(const float *, int64_t c) { return c; }

inline int64_t spot(const bf16 *, int64_t c) {
    return c / (2 * LANES) * (2 * LANES) + c % 2 * LANES + c % (2 * LANES) / 2;
}

inline void widen_vectors(const float *from, float *to) {
    for (int half = 0; half < 2; half++) write(to + half * LANES, read<lanes>(from + half * LANES));
}

inline void widen_vectors(const bf16 *from, float *to) {
    words both = read<words>(from), low = both << 16, high = both & 0xffff0000u;
    write(to, read<lanes>(&low));
    write(to + LANES, read<lanes>(&high));
}

// `count` rows of x widened, with zeros up to LANES rows of `padded` channels.
template <typename T>
inline void widened(const T *x, int64_t count, int64_t channels, int64_t padded, float *out) {
    for (int64_t row = 0; row < count; row++) {
        const T *from = x + row * channels;
        float *to = out + row * padded;
        for (int64_t line = 0; line < channels * int64_t(sizeof(T)); line += 64)
            __builtin_prefetch(reinterpret_cast<const char *>(from) + AHEAD_PAST + line, 0, 3);
        int64_t c = 0;
        for (; c + 2 * LANES <= channels; c += 2 * LANES) widen_vectors(from + c, to + c);
        if (c == padded) continue;
        std::fill(to + c, to + padded, 0.0f);
        for (; c < channels; c++) to[spot(from, c)] = load(from[c]);
    }
    std::fill(out + count * padded, out + LANES * padded, 0.0f);
}

// Products of a query with each of LANES keys.
inline lanes scores_of(const float *query, const float *keys, int64_t padded) {
    lanes parts[LANES] = {};
    for (int64_t c = 0; c < padded; c += STRIP) {
        lanes q[4];
        for (int v = 0; v < 4; v++) q[v] = read<lanes>(query + c + v * LANES);
        for (int k = 0; k < LANES; k++)
            for (int v = 0; v < 4; v++) parts[k] += q[v] * read<lanes>(keys + k * padded + c + v * LANES);
    }
    return sums_of(parts);
}

#ifdef HAS_DOTS
// The same of keys as they lie, `count` of them.
inline lanes scores_of(const bf16 *query, const bf16 *keys, int64_t count, int64_t channels) {
    lanes parts[LANES] = {};
    for (int64_t k = 0; k < count; k++) {
        const bf16 *key = keys + k * channels;
        __m512 part = _mm512_setzero_ps();
        for (int64_t c = 0; c < channels; c += 32) {
            __builtin_prefetch(reinterpret_cast<const char *>(key + c) + AHEAD_PAST, 0, 3);
            part = _mm512_dpbf16_ps(part, (__m512bh)_mm512_loadu_si512(query + c),
                                    (__m512bh)_mm512_loadu_si512(key + c));
        }
        parts[k] = part;
    }
    return sums_of(parts);
}
#endif

// sum [padded] += weights [LANES] times values [LANES, padded].
inline void add_weighted(const float *weights, const float *values, int64_t padded, float *sum) {
    for (int64_t c = 0; c < padded; c += STRIP) {
        lanes total[4];
        for (int v = 0; v < 4; v++) total[v] = read<lanes>(sum + c + v * LANES);
        for (int k = 0; k < LANES; k++)
            for (int v = 0; v < 4; v++) total[v] += weights[k] * read<lanes>(values + k * padded + c + v * LANES);
        for (int v = 0; v < 4; v++) write(sum + c + v * LANES, total[v]);
    }
}

// One query a row and head against the row's own past. Keys and values [rows of the cache, K, length, channels] lie dense;
// the row's new ones are written to them first, at `held`. `group` heads share a key-value head: LANES keys or values are
// widened once for all of them.
template <typename T>
void attend(const T *q, int64_t q_row, int64_t q_head, const T *k, int64_t k_row, int64_t k_head, const T *v,
            int64_t v_row, int64_t v_head, T *keys, T *values, const int64_t *cache_rows, const int64_t *held, T *out,
            int64_t rows, int64_t kv_heads, int64_t group, int64_t channels, int64_t value_channels, int64_t length,
            float scale, int64_t window) {
    static_assert(STRIP % (2 * LANES) == 0, "a widened row is filled in pairs of vectors");
    auto in_strips = [](int64_t number) { return (number + STRIP - 1) / STRIP * STRIP; };
    int64_t padded = in_strips(channels), value_padded = in_strips(value_channels), widest = std::max(padded, value_padded);
#pragma omp parallel for collapse(2) schedule(dynamic, 4)
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t head = 0; head < kv_heads; head++) {
            thread_local std::vector<float> scores, queries, sums, block;
            int64_t last = held[row], from = window > 0 ? std::max<int64_t>(0, last + 1 - window) : 0;
            int64_t seen = last + 1 - from, scores_row = (seen + LANES - 1) / LANES * LANES;
            const T *own_queries = q + row * q_row + head * group * q_head;
            T *own_keys = keys + (cache_rows[row] * kv_heads + head) * length * channels;
            T *own_values = values + (cache_rows[row] * kv_heads + head) * length * value_channels;
            std::memcpy(own_keys + last * channels, k + row * k_row + head * k_head, channels * sizeof(T));
            std::memcpy(own_values + last * value_channels, v + row * v_row + head * v_head, value_channels * sizeof(T));
            scores.resize(group * scores_row);
            block.resize(LANES * widest);
            queries.assign(group * padded, 0.0f);
            sums.assign(group * value_padded, 0.0f);
            for (int64_t g = 0; g < group; g++)
                for (int64_t c = 0; c < channels; c++)
                    queries[g * padded + spot(q, c)] = load(own_queries[g * q_head + c]);
            for (int64_t at = 0; at < seen; at += LANES) {
                const T *some = own_keys + (from + at) * channels;
                int64_t count = std::min<int64_t>(LANES, seen - at);
                float *to = scores.data() + at;
#ifdef HAS_DOTS
                if constexpr (std::is_same<T, bf16>::value) {
                    if (channels % 32 == 0) {
                        for (int64_t g = 0; g < group; g++)
                            write(to + g * scores_row, scale * scores_of(own_queries + g * q_head, some, count, channels));
                        continue;
                    }
                }
#endif
                widened(some, count, channels, padded, block.data());
                for (int64_t g = 0; g < group; g++)
                    write(to + g * scores_row, scale * scores_of(&queries[g * padded], block.data(), padded));
            }
            for (int64_t g = 0; g < group; g++) {
                float *x = scores.data() + g * scores_row, most = x[0], sum = 0.0f;
#pragma omp simd reduction(max : most)
                for (int64_t at = 0; at < seen; at++) most = x[at] > most ? x[at] : most;
#pragma omp simd reduction(+ : sum)
                for (int64_t at = 0; at < seen; at++) {
                    x[at] = exponential(x[at] - most);
                    sum += x[at];
                }
                float factor = 1.0f / sum;
#pragma omp simd
                for (int64_t at = 0; at < seen; at++) x[at] *= factor;
                std::fill(x + seen, x + scores_row, 0.0f);
            }
            for (int64_t at = 0; at < seen; at += LANES) {
                widened(own_values + (from + at) * value_channels, std::min<int64_t>(LANES, seen - at), value_channels,
                        value_padded, block.data());
                for (int64_t g = 0; g < group; g++)
                    add_weighted(&scores[g * scores_row + at], block.data(), value_padded, &sums[g * value_padded]);
            }
            for (int64_t g = 0; g < group; g++) {
                T *to = out + ((row * kv_heads + head) * group + g) * value_channels;
                for (int64_t c = 0; c < value_channels; c++) store(to + c, sums[g * value_padded + spot(v, c)]);
            }
        }
    }
}

// A layer of a Llama-shaped model, as a decoding step needs it: addresses of norms' weights, of packed matrices and of
// their adapters' tables (null: none), of the cache, and whether it turns queries and keys.
struct Layer {
    int64_t norm, norm_mlp, matrices[7], adapters[7], keys, values, turns, window;
};

struct Sizes {
    int64_t rows, width, heads, kv_heads, channels, inner, length;
    float eps, eps_mlp, scale;
};

// The residual stream h [rows, width] through all layers, each row attending to its own past in the cache.
template <typename T>
void step(const Layer *layers, int64_t num_layers, const Sizes &at, T *h, const T *cosine, const T *sine,
          const Rows *blocks, int64_t num_blocks, const int64_t *cache_rows, const int64_t *held) {
    int64_t queries = at.heads * at.channels, keys = at.kv_heads * at.channels;
    std::vector<float> inverse(at.rows);
    std::vector<T> normed(at.rows * at.width), added(at.rows * at.width), q(at.rows * queries), turned_q(q.size());
    std::vector<T> k(at.rows * keys), turned_k(k.size()), v(k.size()), attended(q.size());
    std::vector<T> gate(at.rows * at.inner), up(gate.size()), middle(gate.size());
    for (int64_t index = 0; index < num_layers; index++) {
        const Layer &layer = layers[index];
        auto matrix = [&](int site, std::vector<T> &y, int64_t outputs) {
            return Matrix<T>{reinterpret_cast<const T *>(layer.matrices[site]), outputs, nullptr, y.data(), outputs,
                             reinterpret_cast<const Adapter *>(layer.adapters[site])};
        };
        auto multiply = [&](const std::vector<T> &x, int64_t depth, std::initializer_list<Matrix<T>> given) {
            std::vector<Matrix<T>> matrices(given);
            products<T>(x.data(), depth, at.rows, depth, matrices.data(), matrices.size(), blocks, num_blocks);
        };
        auto add = [&] {
            for (int64_t i = 0; i < at.rows * at.width; i++) store(h + i, load(h[i]) + load(added[i]));
        };
        auto norm = [&](int64_t weight, float eps) {
            rms_norm<T>(h, at.width, reinterpret_cast<const T *>(weight), normed.data(), at.width, inverse.data(), at.rows,
                        at.width, eps, false);
        };
        norm(layer.norm, at.eps);
        multiply(normed, at.width, {matrix(0, q, queries), matrix(1, k, keys), matrix(2, v, keys)});
        if (layer.turns) {
            rotate<T>(q.data(), queries, at.channels, cosine, sine, turned_q.data(), queries, at.channels, at.rows,
                      at.heads, at.channels, 1.0f);
            rotate<T>(k.data(), keys, at.channels, cosine, sine, turned_k.data(), keys, at.channels, at.rows,
                      at.kv_heads, at.channels, 1.0f);
        }
        attend<T>((layer.turns ? turned_q : q).data(), queries, at.channels, (layer.turns ? turned_k : k).data(), keys,
                  at.channels, v.data(), keys, at.channels, reinterpret_cast<T *>(layer.keys),
                  reinterpret_cast<T *>(layer.values), cache_rows, held, attended.data(), at.rows, at.kv_heads,
                  at.heads / at.kv_heads, at.channels, at.channels, at.length, at.scale, layer.window);
        multiply(attended, queries, {matrix(3, added, at.width)});
        add();
        norm(layer.norm_mlp, at.eps_mlp);
        multiply(normed, at.width, {matrix(4, gate, at.inner), matrix(5, up, at.inner)});
        swiglu<T>(gate.data(), up.data(), middle.data(), at.inner, at.rows, at.inner);
        multiply(middle, at.inner, {matrix(6, added, at.width)});
        add();
    }
}

// One token a row by inversion of the distribution function at `uniforms`, or the likeliest where `greedy`; and its
// log-probability in softmax(logits * scale). A row of NaN gets its last token and a log-probability of NaN.
template <typename T>
void draw(const T *logits, const double *uniforms, int64_t rows, int64_t width, float scale, bool greedy,
          int64_t *tokens, float *logprobs) {
    constexpr int64_t CHUNK = 1024;
#pragma omp parallel for schedule(dynamic)
    for (int64_t row = 0; row < rows; row++) {
        const T *x = logits + row * width;
        thread_local std::vector<float> sums;
        sums.assign((width + CHUNK - 1) / CHUNK, 0.0f);
        float most = load(x[0]);
#pragma omp simd reduction(max : most)
        for (int64_t c = 0; c < width; c++) most = load(x[c]) > most ? load(x[c]) : most;
        double total = 0.0;
        for (size_t chunk = 0; chunk < sums.size(); chunk++) {
            int64_t stop = std::min<int64_t>(width, (chunk + 1) * CHUNK);
            float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = chunk * CHUNK; c < stop; c++) sum += exponential((load(x[c]) - most) * scale);
            sums[chunk] = sum;
            total += sum;
        }
        int64_t token = width - 1;
        if (greedy) {
            token = 0;
            while (token < width - 1 && !(load(x[token]) >= most)) token++;
        } else {
            double left = uniforms[row] * total;
            size_t chunk = 0;
            while (chunk + 1 < sums.size() && !(left < sums[chunk])) left -= sums[chunk++];
            int64_t stop = std::min<int64_t>(width, (chunk + 1) * CHUNK);
            // Where rounding leaves a rest behind the chunk, the last token of it that can be drawn.
            for (int64_t c = chunk * CHUNK; c < stop; c++) {
                float share = exponential((load(x[c]) - most) * scale);
                if (!(load(x[c]) > -INFINITY)) continue;
                token = c;
                if (left < share) break;
                left -= share;
            }
        }
        tokens[row] = token;
        logprobs[row] = (load(x[token]) - most) * scale - float(std::log(total));
    }
}

}  // namespace

// Elements of a packed matrix.
extern "C" int64_t packed_size(int64_t outputs, int64_t depth) {
    return (outputs + PANEL - 1) / PANEL * PANEL * even(depth);
}

#define EXPORTED(T, NAME)                                                                                              \
    extern "C" void pack_##NAME(const T *weight, int64_t stride, T *packed, int64_t outputs, int64_t depth) {          \
        pack<T>(weight, stride, packed, outputs, depth);                                                               \
    }                                                                                                                  \
    extern "C" void product_##NAME(const T *x, int64_t xs, int64_t rows, int64_t depth, const T *packed,               \
                                   int64_t outputs, const T *bias, T *y, int64_t ys, const Rows *blocks,               \
                                   int64_t num_blocks, const Adapter *adapters) {                                      \
        Matrix<T> matrix = {packed, outputs, bias, y, ys, adapters};                                                   \
        products<T>(x, xs, rows, depth, &matrix, 1, blocks, num_blocks);                                               \
    }                                                                                                                  \
    extern "C" void attend_##NAME(const T *q, int64_t qr, int64_t qh, const T *k, int64_t kr, int64_t kh, const T *v,  \
                                  int64_t vr, int64_t vh, T *keys, T *values, const int64_t *cache_rows,               \
                                  const int64_t *held, T *out, int64_t rows, int64_t kv_heads, int64_t group,          \
                                  int64_t channels, int64_t value_channels, int64_t length, float scale,               \
                                  int64_t window) {                                                                    \
        attend<T>(q, qr, qh, k, kr, kh, v, vr, vh, keys, values, cache_rows, held, out, rows, kv_heads, group,         \
                  channels, value_channels, length, scale, window);                                                    \
    }                                                                                                                  \
    extern "C" void step_##NAME(const Layer *layers, int64_t num_layers, int64_t rows, int64_t width, int64_t heads,   \
                                int64_t kv_heads, int64_t channels, int64_t inner, int64_t length, float eps,          \
                                float eps_mlp, float scale, T *h, const T *cosine, const T *sine, const Rows *blocks,  \
                                int64_t num_blocks, const int64_t *cache_rows, const int64_t *held) {                  \
        Sizes sizes = {rows, width, heads, kv_heads, channels, inner, length, eps, eps_mlp, scale};                    \
        step<T>(layers, num_layers, sizes, h, cosine, sine, blocks, num_blocks, cache_rows, held);                     \
    }

#define EXPORTED_DRAW(T, NAME)                                                                                         \
    extern "C" void draw_##NAME(const T *logits, const double *uniforms, int64_t rows, int64_t width, float scale,     \
                                int64_t greedy, int64_t *tokens, float *logprobs) {                                    \
        draw<T>(logits, uniforms, rows, width, scale, greedy != 0, tokens, logprobs);                                  \
    }

EXPORTED_DRAW(float, fp32)
EXPORTED_DRAW(bf16, bf16)
EXPORTED(float, fp32)
EXPORTED(bf16, bf16)
