-- POST signed webhooks of a file with "signature <tab> body" lines, each once; the run must end before the file does.
local signatures, bodies, count = {}, {}, 0

function init(args)
  for line in io.lines(args[1]) do
    local signature, body = line:match("([^\t]*)\t(.*)")
    signatures[#signatures + 1], bodies[#bodies + 1] = signature, body
  end
end

function request()
  count = count % #bodies + 1
  local headers = { ["X-Hub-Signature-256"] = signatures[count], ["Content-Type"] = "application/json" }
  return wrk.format("POST", "/inbound/whatsapp", headers, bodies[count])
end

dofile((arg and arg[0] or debug.getinfo(1).source:sub(2)):match("(.*/)") .. "report.lua")
