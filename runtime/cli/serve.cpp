// foretoken serve: the server alone; a trainer may connect to its endpoints.
#include "runtime/cli/command.h"
#include "runtime/cli/run_server.h"

namespace foretoken {
namespace {

int serve_main(int argc, char** argv) {
  Flags flags(argv[0], "Serves a model over the OpenAI API, with speculation.");
  ServeFlags options;
  options.add_to(flags);
  if (auto status = flags.parse(argc, argv)) return *status;
  if (Status status = options.server.complete(); !status) return exit_status(argv[0], status, 2);
  return run_server(options, {});
}

const Subcommand kServe{"serve", "serve a model over the OpenAI API, with speculation", serve_main,
                        10};

}  // namespace
}  // namespace foretoken
