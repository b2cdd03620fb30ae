-- For wrk: post the pictures that a file names, one after the other.
-- wrk -s serve.lua URL -- LIST [form | close]
local FORM = '--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n' ..
  'Content-Type: image/jpeg\r\n\r\n%s\r\n--x--\r\n'
local requests, sent = {}, 0

function init(arguments)
  local headers = {["Content-Type"] = "image/jpeg"}
  if arguments[2] == "close" then headers["Connection"] = "close" end
  if arguments[2] == "form" then headers["Content-Type"] = "multipart/form-data; boundary=x" end
  for path in io.lines(arguments[1]) do
    local file = assert(io.open(path, "rb"))
    local body = file:read("*a")
    file:close()
    if arguments[2] == "form" then body = FORM:format(body) end
    requests[#requests + 1] = wrk.format("POST", nil, headers, body)
  end
end

function request()
  sent = sent + 1
  return requests[sent % #requests + 1]
end

function done(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '{"rate": %f, "failed": %d, "p50": %f, "p99": %f}\n',
    summary.requests / summary.duration * 1e6,
    failed.connect + failed.read + failed.write + failed.status + failed.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
