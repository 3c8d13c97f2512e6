// The kernel table for this instruction set: the shared sources over its lanes.
#include "tokenvm/lanes_avx512.hpp"
// The lanes come first.
#include "tokenvm/lane_math.hpp"
// Then what is built on them.
#include "tokenvm/code_lanes.hpp"
#include "tokenvm/dot.hpp"
#include "tokenvm/lane_attention.hpp"
#include "tokenvm/lane_bitpack.hpp"
#include "tokenvm/lane_quantise.hpp"
#include "tokenvm/lane_rowwise.hpp"
#include "tokenvm/lane_epilogue.hpp"
#include "tokenvm/lane_linear.hpp"
#include "tokenvm/lane_table.hpp"
// And what the tile unit does better.
#include "tokenvm/amx_attention.hpp"
#include "tokenvm/amx_linear.hpp"

namespace tokenvm {

const Kernels& amx_kernels() {
  static constexpr Kernels table = [] {
    Kernels tiles = lane_kernels("amx");
    tiles.row_layout = RowLayout::kTiles;
    tiles.prepare_rows = entry<tile_rows>;
    tiles.linear_bf16 = entry<tile_linear>;
    tiles.walk_bf16 = entry<walk_tiles>;
    return tiles;
  }();
  return table;
}

}  // namespace tokenvm
