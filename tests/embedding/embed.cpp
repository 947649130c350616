// A program with a foretoken server inside: starts one on any free port, asks it for a completion
// over HTTP as a client would, and stops it.
//   embed MODEL.gguf STATE_FOLDER PROMPT
#include <cstdio>
#include <string>

#include "runtime/replay/http_client.h"
#include "runtime/server/server.h"

int main(int argc, char** argv) {
  using namespace foretoken;
  if (argc != 4) return std::fprintf(stderr, "usage: embed MODEL.gguf STATE_FOLDER PROMPT\n"), 2;
  const auto fail = [](const Error& error) {
    std::fprintf(stderr, "embed: %s\n", error.message.c_str());
    return 1;
  };
  Server::Options options;
  options.model = argv[1];
  options.state_dir = argv[2];
  options.http.port = 0;
  Server server(options);
  if (Status started = server.start(); !started) return fail(started.error());

  HttpClient client({"127.0.0.1", std::to_string(server.port()), ""}, "", 60);
  const std::string body =
      R"({"prompt": ")" + std::string(argv[3]) + R"(", "max_tokens": 16, "temperature": 0})";
  std::string answer;
  const auto response =
      client.call("/v1/completions", &body, [&](std::string_view piece) { answer += piece; });
  if (!response) return fail(response.error());
  std::printf("%d %s\n", response->status, answer.c_str());
  server.stop(/*finish_s=*/5);
  return response->status == 200 ? 0 : 1;
}
