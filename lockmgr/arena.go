package lockmgr

import "encoding/binary"

// token is a token of a lock name: its length, then its bytes if they fit, or
// else their position in an arena.
type token [12]byte

const (
	maxInline = len(token{}) - 1
	maxToken  = 255
)

// arena holds the tokens of a table's locks and prefixes that do not fit into a
// token, in memory that the garbage collector does not scan. A cell is rounded
// up to 8 bytes; freed ones are kept in one list for each size, linked through
// their first bytes. A reference is the cell's position in units of 8 bytes; 0
// is none.
type arena struct {
	chunks []*[arenaChunk]byte
	bump   uint32 // next unused unit
	free   [arenaClasses]uint32
}

const (
	arenaUnit    = 8
	arenaChunk   = 4 << 10
	arenaUnits   = arenaChunk / arenaUnit
	arenaClasses = (maxToken+arenaUnit-1)/arenaUnit + 1
)

// get returns a token's bytes, valid until it is dropped or moved.
func (a *arena) get(t *token) []byte {
	n := int(t[0])
	if n <= maxInline {
		return t[1 : 1+n]
	}
	return a.cell(t.ref())[:n]
}

func (a *arena) put(s string) token {
	if len(s) > maxToken {
		panic("lockmgr: a token of a lock name is longer than 255 bytes")
	}
	t := token{byte(len(s))}
	if len(s) <= maxInline {
		copy(t[1:], s)
		return t
	}
	class := t.class()
	ref := a.free[class]
	if ref != 0 {
		a.free[class] = binary.LittleEndian.Uint32(a.cell(ref))
	} else {
		ref = a.grow(class)
	}
	copy(a.cell(ref), s)
	binary.LittleEndian.PutUint32(t[1:], ref)
	return t
}

func (a *arena) drop(t *token) {
	if int(t[0]) <= maxInline {
		return
	}
	class, ref := t.class(), t.ref()
	binary.LittleEndian.PutUint32(a.cell(ref), a.free[class])
	a.free[class] = ref
}

func (a *arena) grow(class uint32) uint32 {
	if a.bump == 0 {
		a.bump = 1 // 0 means none
	}
	if left := arenaUnits - a.bump%arenaUnits; left < class {
		a.bump += left // a cell does not cross chunks
	}
	if int(a.bump/arenaUnits) == len(a.chunks) {
		a.chunks = append(a.chunks, new([arenaChunk]byte))
	}
	ref := a.bump
	a.bump += class
	return ref
}

func (a *arena) cell(ref uint32) []byte {
	return a.chunks[ref/arenaUnits][ref%arenaUnits*arenaUnit:]
}

// ref is where a token that does not fit is kept.
func (t *token) ref() uint32 { return binary.LittleEndian.Uint32(t[1:]) }

// class is the number of units that a token that does not fit takes.
func (t *token) class() uint32 { return (uint32(t[0]) + arenaUnit - 1) / arenaUnit }
