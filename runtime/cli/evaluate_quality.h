// `foretoken evaluate --quality MODEL`: the other half of a subcommand, with flags of its own.
#pragma once

namespace foretoken {

bool asks_for_quality(int argc, char** argv);
int evaluate_quality_main(int argc, char** argv);

}  // namespace foretoken
