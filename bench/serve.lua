-- For wrk: post the pictures that a file names, one after the other; as forms, if told to.
-- wrk -s serve.lua URL -- LIST [form] [close]
local FORM = '--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n' ..
  'Content-Type: image/jpeg\r\n\r\n%s\r\n--x--\r\n'
local requests, sent = {}, 0

function init(arguments)
  for path in io.lines(arguments[1]) do
    local file = assert(io.open(path, "rb"))
    local body, content_type = file:read("*a"), "image/jpeg"
    file:close()
    local headers = {}
    for i = 2, #arguments do
      if arguments[i] == "close" then headers["Connection"] = "close" end
    end
    if arguments[2] == "form" then
      body = FORM:gsub("%%s", function() return body end)
      content_type = "multipart/form-data; boundary=x"
    end
    headers["Content-Type"] = content_type
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
