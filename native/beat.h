// What a rank leaves in the job's store for the others to read (heartbeat.h).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

namespace grove {

// A sign of life, as its lines.
struct Beat {
  int64_t number = -1;
  std::string state;  // alive, left, failed
  int64_t started = 0;  // collectives
  int64_t waiting = -1, still = 0;  // as Standing, in ms
  std::string where, operation, collective;
  std::string error;  // the rest, where the rank has failed

  std::vector<uint8_t> bytes() const {
    const std::string text = std::to_string(number) + "\n" + state + "\n" + std::to_string(started) + "\n" + std::to_string(waiting) + "\n" +
                             std::to_string(still) + "\n" + where + "\n" + operation + "\n" + collective + "\n" + error;
    return {text.begin(), text.end()};
  }

  static Beat parse(const std::vector<uint8_t>& bytes) {
    Beat beat;
    std::istringstream lines(std::string(bytes.begin(), bytes.end()));
    std::string number, started, waiting, still;
    std::getline(lines, number);
    std::getline(lines, beat.state);
    std::getline(lines, started);
    std::getline(lines, waiting);
    std::getline(lines, still);
    std::getline(lines, beat.where);
    std::getline(lines, beat.operation);
    std::getline(lines, beat.collective);
    std::getline(lines, beat.error, '\0');
    beat.number = std::atoll(number.c_str());
    beat.started = std::atoll(started.c_str());
    beat.waiting = std::atoll(waiting.c_str());
    beat.still = std::atoll(still.c_str());
    return beat;
  }
};

}  // namespace grove
