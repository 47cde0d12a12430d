package relay

import "sync"

// chunk is how much is read at once, in bytes. A message of a session fits, a
// bulk transfer fills it: at this size copying costs no more than splicing, which
// would keep a pipe in each direction, two descriptors, for as long as it waits.
const chunk = 64 << 10

type (
	// buffer has room for what was kept and for a chunk that follows it.
	buffer     [MaxKept + chunk]byte
	keptBuffer [MaxKept]byte
)

// Buffers are taken while there is something to be put in them.
var (
	keptBuffers      = sync.Pool{New: func() any { return new(keptBuffer) }}
	unwrittenBuffers = sync.Pool{New: func() any { return new(buffer) }}
	readBuffers      = sync.Pool{New: func() any { return new(buffer) }}
)
