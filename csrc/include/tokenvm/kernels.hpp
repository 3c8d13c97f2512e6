// The table of inner kernels that each instruction set fills in. Drivers (linear.cpp, attention.cpp, ...)
// check, cut the work into tasks and call through the active table; all tables compute the same bits
// ("k32-2").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenvm/numerics.hpp"
#include "tokenvm/paging.hpp"

namespace tokenvm {

namespace {

// The tokens [begin, end) of a page; none if begin >= end.
struct Span {
  std::int64_t begin, end;
};

// What a row sees of a page of `tokens` tokens; `position` counts from the page's first token. `later`: the page
// shows itself to rows of later pages alone.
inline Span seen_tokens(std::int64_t position, std::int64_t window, std::int64_t tokens, bool later) {
  if (later && position < tokens) return {0, 0};
  const auto clamp = [tokens](std::int64_t t) { return t < 0 ? 0 : t < tokens ? t : tokens; };
  return {window > 0 ? clamp(position - window + 1) : 0, clamp(position + 1)};
}

}  // namespace

// Some query rows (row, head) against one kv head of one page.
struct PageJob {
  const float* q;  // [rows][head_dim], the values of the KV dtype
  std::int64_t rows;
  const std::int32_t* begin;  // row r sees the tokens [begin[r], end[r]) of the page
  const std::int32_t* end;
  const void* keys;    // [head_dim/w][tokens][w]
  const void* values;  // [tokens/w][head_dim][w]
  const void* ahead;   // the keys that are wanted next
  std::int64_t head_dim;
  std::int64_t tokens;
  float scale;
  float* scores;  // scratch, [ceil(rows/16)*16][tokens]
  float* acc;     // out, [rows][head_dim]; unspecified for a row that sees nothing
  float* peak;    // out, [rows]; -inf for a row that sees nothing
  float* mass;    // out, [rows]
};

// Tokens of one head of a page that somebody reads soon; no head: nothing to bring near. Only ever a hint.
struct Ahead {
  const char* head = nullptr;
  std::int64_t begin = 0, end = 0;  // tokens
};

// Some query rows (row, head) against one kv head of consecutive pages of a sequence, bf16. head_dim and tokens
// are multiples of 32.
struct WalkJob {
  const bf16* q_tiles;  // [ceil(rows/16)][head_dim/32][16][32], rows past the last zero
  std::int64_t rows, head_dim, tokens;
  const std::int64_t* position;  // [rows]
  std::int64_t start;            // position of the first page's first token
  std::int64_t window;           // 0: none
  bool later;                    // rows see none of the page they stand in
  float scale;
  const std::uint64_t* parts;  // addresses of the pages' parts
  std::int64_t head_bytes;     // from a part to the head's keys; the values follow those
  std::int64_t page_count;
  Ahead after;      // raw, what is read after the last page
  float* scores;    // scratch, [2][16][tokens], 64-byte aligned
  float* page_acc;  // scratch, [16][head_dim]
  // In position order the pages are folded into the rows' states acc [rows][head_dim], peak and mass [rows].
  // With `partial` nothing is folded: row r of page p is written at p * partial_rows + r, if any row sees p.
  float* acc;
  float* peak;
  float* mass;
  bool partial;
  std::int64_t partial_rows;
};

// Folds what one page gave for some rows into their states; a row that saw nothing (peak -inf) keeps its
// state.
struct FoldJob {
  std::int64_t rows, head_dim;
  const float* page_acc;  // [rows][head_dim]
  const float* page_peak;
  const float* page_mass;
  const std::int64_t* place;  // row r's state is acc[place[r]][], peak[place[r]], mass[place[r]]
  float* acc;
  float* peak;
  float* mass;
};

// One kv head of a part, raw and coded.
struct CodeJob {
  void* raw;    // [2][tokens * head_dim] of bf16 (narrow) or fp32, in the order of the part
  void* coded;  // PartShape::head_bytes of the format
  std::int64_t head_dim, tokens;
  bool narrow;
  KvFormat format;  // not kRaw
};

// What becomes of the sums of a product: they are stored, or added to what is there; or the first half of the
// outputs are gates g, the second half ups u, and silu(g) * u is stored.
enum class Epilogue : int { kStore, kAdd, kSiluMul };

// The rows [row_begin, row_end) times the blocks of 16 outputs [block_begin, block_end) of a packed matrix.
// kSiluMul: the outputs are a multiple of 32, and the blocks are those of the gates.
struct LinearJob {
  const void* rows;  // as `prepare_rows` left them (bf16), or fp32 [total_rows][columns]
  const void* weight;
  std::int64_t columns;  // K
  std::int64_t outputs;  // N
  std::int64_t row_begin, row_end;
  std::int64_t block_begin, block_end;
  Epilogue epilogue;
  bool narrow;  // kSiluMul: out is bf16, else fp32
  void* out;    // [total_rows][outputs], kSiluMul: [total_rows][outputs/2]
};

struct Kernels {
  const char* name;

  // Lays bf16 rows [row_begin, row_end) of x [total_rows][columns] out for linear_bf16. row_begin is a
  // multiple of 16.
  void (*prepare_rows)(const bf16* x, std::int64_t columns, std::int64_t row_begin, std::int64_t row_end,
                       void* rows);
  void (*linear_bf16)(const LinearJob& job);
  void (*linear_fp32)(const LinearJob& job);

  void (*attend_bf16)(const PageJob& job);
  void (*attend_fp32)(const PageJob& job);
  void (*walk_bf16)(const WalkJob& job);  // null where pages are better attended one by one
  void (*fold)(const FoldJob& job);
  void (*quantise)(const CodeJob& job);    // raw to coded
  void (*dequantise)(const CodeJob& job);  // coded to raw
  // out = acc / mass + 0, fp32 or bf16.
  void (*finish)(const float* acc, float mass, std::int64_t head_dim, void* out, bool narrow);

  // One row: x += delta (unless null), out = x / rms(x) * weight.
  void (*rms_norm)(float* x, const float* delta, const float* weight, float eps, std::int64_t width,
                   void* out, bool narrow);
  void (*silu_mul)(const float* gate, const float* up, std::int64_t count, void* out, bool narrow);
  void (*gelu_mul)(const float* gate, const float* up, std::int64_t count, void* out, bool narrow);
  void (*cast)(const float* x, std::int64_t count, bf16* out);
  // Half-rotation of one head, to fp32 or bf16: cos_sin holds head_dim/2 cosines, then as many sines.
  void (*rope)(const float* x, const float* cos_sin, std::int64_t head_dim, void* out, bool narrow);

  // As in bitpack.hpp.
  std::uint64_t (*bitpack_encode)(const void* part, std::uint64_t nbytes, void* stored, std::uint64_t room);
  bool (*bitpack_decode)(const void* stored, std::uint64_t room, void* part, std::uint64_t nbytes);
};

// Bytes that prepare_rows may write for so many rows.
inline std::int64_t prepared_bytes(std::int64_t rows, std::int64_t columns) {
  return (rows + 15) / 16 * 16 * ((columns + 31) / 32 * 32) * static_cast<std::int64_t>(sizeof(float));
}

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();
#endif

// The table in use: the best this CPU has, until select_kernels chooses.
const Kernels& kernels();
// Names of the tables this CPU can run, best first.
std::vector<std::string> available_kernels();
// False if the name is unknown or this CPU cannot run it; nothing changes then.
bool select_kernels(const std::string& name);

}  // namespace tokenvm
