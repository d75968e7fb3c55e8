-- One JSON line at the end: requests, seconds, milliseconds of latency, answers that were not 2xx, socket errors.
function done(summary, latency, requests)
  local e = summary.errors
  io.stdout:write(string.format(
    'RESULT {"requests": %d, "seconds": %.3f, "p50": %.2f, "p99": %.2f, "max": %.2f, "refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, e.status, e.connect + e.read + e.write + e.timeout))
end
