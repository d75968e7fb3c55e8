-- GET random intents of a file with "publishable key <tab> intent id" lines.
local keys, ids = {}, {}

function init(args)
  for line in io.lines(args[1]) do
    local key, id = line:match("(.*)\t(.*)")
    keys[#keys + 1], ids[#ids + 1] = key, id
  end
end

function request()
  local n = math.random(#ids)
  return wrk.format("GET", "/v1/registration-intents/" .. ids[n], { ["x-wabery-publishable-key"] = keys[n] })
end

dofile((arg and arg[0] or debug.getinfo(1).source:sub(2)):match("(.*/)") .. "report.lua")
