#!lua flags=allow-oom
-- An archiver takes over the archive: issues the next token. What an older archiver still asks for is refused.
-- Its token is not the controller's fence, which moves at each hand-over of the devices.
--
-- Arguments  none (ARGV[1], ARGV[2] are ignored)
-- Reads      archiver
-- Writes     archiver
-- Returns    the token

return call('INCR', 'archiver')
