// A client that sends exactly the bytes it is told to, over a real socket.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <string_view>

namespace foretoken {

class SocketClient {
 public:
  explicit SocketClient(int port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0)
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~SocketClient() { close(); }
  SocketClient(const SocketClient&) = delete;
  SocketClient& operator=(const SocketClient&) = delete;
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  bool connected() const { return connected_; }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  // Reads until `until` was seen, the peer closed, or nothing came for timeout_ms.
  std::string read(std::string_view until = "", int timeout_ms = 5000) {
    std::string out;
    char buffer[65536];
    while (until.empty() || out.find(until) == std::string::npos) {
      pollfd p{fd_, POLLIN, 0};
      if (poll(&p, 1, timeout_ms) <= 0) {
        timed_out_ = true;
        break;
      }
      ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
      if (n <= 0) {
        closed_ = true;
        break;
      }
      out.append(buffer, static_cast<std::size_t>(n));
    }
    return out;
  }
  bool closed_by_peer() const { return closed_; }
  bool timed_out() const { return timed_out_; }
  void request(std::string_view method, std::string_view path, std::string_view body = "",
               std::string_view headers = "") {
    std::string head = std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: x\r\n" +
                       std::string(headers);
    if (!body.empty())
      head += "Content-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
              "\r\n";
    send(head + "\r\n" + std::string(body));
  }

 private:
  int fd_;
  bool connected_ = false, closed_ = false, timed_out_ = false;
};

// A whole response read by its Content-Length or chunks.
struct RawResponse {
  int status = 0;
  std::string head, body;
};
inline RawResponse read_response(SocketClient& client) {
  RawResponse response;
  std::string all = client.read("\r\n\r\n");
  auto end = all.find("\r\n\r\n");
  if (end == std::string::npos) return response;
  response.head = all.substr(0, end + 2);
  response.status = std::atoi(all.c_str() + 9);
  std::string rest = all.substr(end + 4);
  auto length = response.head.find("Content-Length: ");
  if (length != std::string::npos) {
    auto n = static_cast<std::size_t>(std::atoll(response.head.c_str() + length + 16));
    while (rest.size() < n && !client.closed_by_peer() && !client.timed_out()) {
      // One byte of the missing part as the sign is not known: read what comes.
      std::string more = client.read(std::string_view(), 200);
      rest += more;
      if (more.empty()) break;
    }
    response.body = rest.substr(0, n);
  } else if (response.head.find("chunked") != std::string::npos) {
    while (rest.find("0\r\n\r\n") == std::string::npos && !client.closed_by_peer() &&
           !client.timed_out())
      rest += client.read("0\r\n\r\n");
    std::size_t at = 0;
    while (at < rest.size()) {
      std::size_t line = rest.find("\r\n", at);
      if (line == std::string::npos) break;
      std::size_t n = std::stoul(rest.substr(at, line - at), nullptr, 16);
      if (n == 0) break;
      response.body += rest.substr(line + 2, n);
      at = line + 2 + n + 2;
    }
  }
  return response;
}

}  // namespace foretoken
