// The four thin products of an adapter in bf16, for all slots of a matrix in one call each.
//
// Forward u = x A^T and backward du = dy s B read a wide activation once and write a few columns; the gradients
// dA = du^T x and dB = s dy^T u read it once and add to fp32 accumulators, without a rounding in between. Rows of a slot
// meet its own matrices only, so that a NaN stays with its slot. Products are those of `blocks.h`.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "blocks.h"

namespace {

constexpr int64_t WIDE = 64;    // columns of a gradient that one task makes
constexpr int64_t TOKENS = 256;  // rows that it packs at a time

// A table's row of what a slot's rows meet.
struct Span {
    int64_t start, stop;  // rows
    int64_t address;      // of the slot's matrix, or of its gradient
    int64_t row;          // elements between rows of that
    int64_t rank;         // 0: no adapter here
    int64_t column;       // of the first of its columns among those of all slots
    int64_t rows() const { return stop - start; }
    int64_t width() const { return filled(rank); }
};

// Tasks of `size` rows or columns each, that several spans have.
struct Task {
    int64_t span, from;
};

// A's rows (`by_rows`: [rank, depth]) or B's columns ([depth, rank]) as a right operand, columns filled up with zeros.
void pack_matrix(const Span &span, int64_t depth, bool by_rows, bf16 *out) {
    const bf16 *matrix = reinterpret_cast<const bf16 *>(span.address);
    int64_t steps = depth / BLOCK;
    std::memset(out, 0, span.width() * depth * sizeof(bf16));
    if (by_rows) {
        for (int64_t n = 0; n < span.rank; n++)
            for (int64_t pair = 0; pair < depth / 2; pair++)
                std::memcpy(out + (n / COLUMNS * steps * TILE) + n % COLUMNS * 2 + pair * BLOCK,
                            matrix + n * span.row + pair * 2, 4);
        return;
    }
    for (int64_t k = 0; k < depth; k++) {
        const bf16 *from = matrix + k * span.row;
        bf16 *to = out + k / BLOCK * TILE + k % BLOCK / 2 * BLOCK + k % 2;
        for (int64_t n = 0; n < span.rank; n++) to[n / COLUMNS * steps * TILE + n % COLUMNS * 2] = from[n];
    }
}

template <class By>
void thin_in(const bf16 *x, int64_t x_row, int64_t rows, int64_t depth, const Span *spans, int64_t number, bool by_rows,
             bf16 *u, int64_t u_row, bf16 *tail, int64_t tail_row, int64_t tail_width) {
    std::vector<int64_t> places(number + 1, 0);
    std::vector<Task> tasks;
    for (int64_t s = 0; s < number; s++) {
        places[s + 1] = places[s] + spans[s].width() * depth;
        for (int64_t from = spans[s].start; from < spans[s].stop; from += BLOCK) tasks.push_back({s, from});
    }
    Scratch packed(places[number] * 2 + 64);
    bf16 *matrices = packed.take<bf16>(places[number]);
#pragma omp parallel
    {
        Scratch own(BLOCK * (depth + BLOCK * 2) * 2 / 64 * 64 + 256);
        bf16 *copy = own.take<bf16>(BLOCK * depth);
        float *sums = own.take<float>(BLOCK * BLOCK);
        By::begin();
#pragma omp for schedule(dynamic)
        for (int64_t s = 0; s < number; s++) pack_matrix(spans[s], depth, by_rows, matrices + places[s]);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < int64_t(tasks.size()); task++) {
            const Span &span = spans[tasks[task].span];
            int64_t from = tasks[task].from, last = std::min(span.stop, from + BLOCK);
            const bf16 *block = x + from * x_row;
            int64_t block_row = x_row;
            for (int64_t row = from; row < last; row++) {
                std::memset(tail + row * tail_row, 0, tail_width * sizeof(bf16));
                std::memset(u + row * u_row, 0, u_row * sizeof(bf16));
            }
            if (span.rank == 0) continue;
            if (from + BLOCK > rows) {  // behind the last row there may be no memory
                std::memset(copy, 0, BLOCK * depth * sizeof(bf16));
                for (int64_t row = from; row < last; row++)
                    std::memcpy(copy + (row - from) * depth, x + row * x_row, depth * sizeof(bf16));
                block = copy;
                block_row = depth;
            }
            int64_t between = depth / BLOCK * TILE;
            for (int64_t c = 0; c < span.rank; c += BLOCK) {
                const bf16 *matrix = matrices + places[tasks[task].span] + c / COLUMNS * between;
                int64_t present = std::min(BLOCK, span.rank - c);
                By::block(sums, BLOCK, false, block, block_row, matrix, between, depth / BLOCK, last - from > COLUMNS,
                          present > COLUMNS);
                for (int64_t row = from; row < last; row++) {
                    bf16 *to = u + row * u_row + c;
                    for (int64_t n = 0; n < present; n++) store(to + n, sums[(row - from) * BLOCK + n]);
                    std::memcpy(tail + row * tail_row + span.column + c, to, present * sizeof(bf16));
                }
            }
        }
        By::end();
    }
}

template <class By>
void thin_out(const bf16 *u, int64_t u_row, const bf16 *x, int64_t x_row, int64_t depth, const Span *spans,
              int64_t number, bool turned, const float *scales) {
    std::vector<int64_t> places(number + 1, 0);
    std::vector<Task> tasks;
    int64_t widest = 0;
    for (int64_t s = 0; s < number; s++) {
        places[s + 1] = places[s] + spans[s].width() * filled(spans[s].rows());
        widest = std::max(widest, spans[s].width());
        if (spans[s].rank > 0 && spans[s].rows() > 0)
            for (int64_t from = 0; from < depth; from += WIDE) tasks.push_back({s, from});
    }
    Scratch packed(places[number] * 2 / 64 * 64 + 64);
    bf16 *factors = packed.take<bf16>(places[number]);
#pragma omp parallel
    {
        Scratch own((TOKENS * WIDE * 2 + BLOCK * WIDE * 2 + widest * WIDE * 4) / 64 * 64 + 256);
        bf16 *operand = own.take<bf16>(TOKENS * WIDE), *copy = own.take<bf16>(BLOCK * WIDE);
        float *sums = own.take<float>(widest * WIDE);
        By::begin();
#pragma omp for schedule(dynamic)
        for (int64_t s = 0; s < number; s++) {  // u^T, its rows as long as a whole number of blocks
            const Span &span = spans[s];
            int64_t length = filled(span.rows());
            bf16 *to = factors + places[s];
            std::memset(to, 0, span.width() * length * sizeof(bf16));
            for (int64_t row = 0; row < span.rows(); row++) {
                const bf16 *from = u + (span.start + row) * u_row;
                for (int64_t n = 0; n < span.rank; n++) to[n * length + row] = from[n];
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < int64_t(tasks.size()); task++) {
            const Span &span = spans[tasks[task].span];
            int64_t from = tasks[task].from, wide = std::min(WIDE, depth - from), length = filled(span.rows());
            const bf16 *factor = factors + places[tasks[task].span];
            for (int64_t at = 0; at < length; at += TOKENS) {
                int64_t here = std::min(TOKENS, length - at), steps = here / BLOCK;
                for (int64_t step = 0; step < steps; step++) {
                    int64_t row = span.start + at + step * BLOCK;
                    const bf16 *block = x + row * x_row + from;
                    int64_t block_row = x_row;
                    if (row + BLOCK > span.stop) {  // what follows is another slot's
                        std::memset(copy, 0, BLOCK * WIDE * sizeof(bf16));
                        for (int64_t k = row; k < span.stop; k++)
                            std::memcpy(copy + (k - row) * wide, x + k * x_row + from, wide * sizeof(bf16));
                        block = copy;
                        block_row = wide;
                    }
                    // Tiles of this step for all columns: tile (column / 16, step).
                    for (int64_t tile = 0; tile < wide / COLUMNS; tile++)
                        pack_rows(block + tile * COLUMNS, block_row, BLOCK, COLUMNS, operand + (tile * steps + step) * TILE);
                }
                for (int64_t n = 0; n < span.width(); n += BLOCK)
                    for (int64_t c = 0; c < wide; c += BLOCK)
                        By::block(sums + n * WIDE + c, WIDE, at > 0, factor + n * length + at, length,
                                  operand + c / COLUMNS * steps * TILE, steps * TILE, steps, span.rank - n > COLUMNS);
            }
            float *gradient = reinterpret_cast<float *>(span.address);
            float by = scales[tasks[task].span];
            if (turned) {
                for (int64_t c = 0; c < wide; c++)
                    for (int64_t n = 0; n < span.rank; n++) gradient[(from + c) * span.row + n] += by * sums[n * WIDE + c];
            } else {
                for (int64_t n = 0; n < span.rank; n++)
                    for (int64_t c = 0; c < wide; c++) gradient[n * span.row + from + c] += by * sums[n * WIDE + c];
            }
        }
        By::end();
    }
}

}  // namespace

// u of each row in its slot's own columns, zero behind them ([rows, u_row]), and among those of all slots in `tail`,
// which is zero elsewhere. `by_rows`: the matrices are [rank, depth], else [depth, rank]. `way` as in attention.cpp.
extern "C" void thin_in_bf16(const bf16 *x, int64_t x_row, int64_t rows, int64_t depth, const int64_t *spans,
                             int64_t number, int64_t by_rows, bf16 *u, int64_t u_row, bf16 *tail, int64_t tail_row,
                             int64_t tail_width, int64_t way) {
    const Span *table = reinterpret_cast<const Span *>(spans);
#ifdef HAS_TILES
    if (way == 4)
        return thin_in<Tiles>(x, x_row, rows, depth, table, number, by_rows, u, u_row, tail, tail_row, tail_width);
#endif
#ifdef HAS_DOTS
    if (way == 2)
        return thin_in<Dots>(x, x_row, rows, depth, table, number, by_rows, u, u_row, tail, tail_row, tail_width);
#endif
    thin_in<Plain>(x, x_row, rows, depth, table, number, by_rows, u, u_row, tail, tail_row, tail_width);
}

// Adds scales u^T x of each span's rows to its fp32 gradient [rank, depth]; `turned`: to [depth, rank].
extern "C" void thin_out_bf16(const bf16 *u, int64_t u_row, const bf16 *x, int64_t x_row, int64_t depth,
                              const int64_t *spans, const float *scales, int64_t number, int64_t turned, int64_t way) {
    const Span *table = reinterpret_cast<const Span *>(spans);
#ifdef HAS_TILES
    if (way == 4) return thin_out<Tiles>(u, u_row, x, x_row, depth, table, number, turned, scales);
#endif
#ifdef HAS_DOTS
    if (way == 2) return thin_out<Dots>(u, u_row, x, x_row, depth, table, number, turned, scales);
#endif
    thin_out<Plain>(u, u_row, x, x_row, depth, table, number, turned, scales);
}
