#!lua flags=no-writes
-- Small reads in one answer: asyncio costs more per answer than the server per read. Changes nothing, so it
-- checks no fence; ARGV[1] and ARGV[2] are unused.
--
-- Arguments  from ARGV[3] the reads: number of arguments, command (HGETALL, HGET or GET), key name without the
--            prefix, field
-- Reads      the keys named
-- Returns    the answers, in order

local answers = {}
local i = 3
while i <= #ARGV do
  local arguments = tonumber(ARGV[i])
  answers[#answers + 1] = call(ARGV[i + 1], unpack(ARGV, i + 2, i + 1 + arguments))
  i = i + 2 + arguments
end
return answers
