-- POST a new reference each time. args: file with one secret key a line, prefix of the references, "key" for an
-- Idempotency-Key on each request.
local keys, prefix, idempotent, count = {}, "", false, 0

function init(args)
  for line in io.lines(args[1]) do keys[#keys + 1] = "Bearer " .. line end
  prefix, idempotent = args[2], args[3] == "key"
end

function request()
  count = count + 1
  local headers = { ["Authorization"] = keys[count % #keys + 1], ["Content-Type"] = "application/json" }
  if idempotent then headers["Idempotency-Key"] = prefix .. count end
  local body = '{"customer_reference":"' .. prefix .. count .. '","metadata":{"plan":"starter"}}'
  return wrk.format("POST", "/v1/registration-intents", headers, body)
end

dofile((arg and arg[0] or debug.getinfo(1).source:sub(2)):match("(.*/)") .. "report.lua")
