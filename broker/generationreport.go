package broker

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cantuslog/cantus/wal"
)

// generationReport is what a node sends when it connects to another one: the
// generations of its own data directory, and what it remembers of the other's.
type generationReport struct {
	id    string           // of the directory
	start uint64           // number of the first generation of this run of the node
	own   []wal.Generation // the newest generations, in ascending order
	yours remembered
}

// remembered is what a node remembers of another node's directory.
type remembered struct {
	id     string // of the directory; "" if nothing is remembered
	newest wal.Generation
	older  bool // an older copy was seen since
}

const generationReportVersion = 1

var errGenerationReport = errors.New("malformed generation report")

func (c generationReport) encode() []byte {
	b := append([]byte{generationReportVersion, byte(len(c.id))}, c.id...)
	b = binary.BigEndian.AppendUint64(b, c.start)
	newest := uint64(0)
	if n := len(c.own); n > 0 {
		newest = c.own[n-1].Number
	}
	b = binary.BigEndian.AppendUint64(b, newest)
	b = binary.BigEndian.AppendUint16(b, uint16(len(c.own)))
	for _, g := range c.own {
		b = append(b, g.Nonce[:]...)
	}
	older := byte(0)
	if c.yours.older {
		older = 1
	}
	b = append(append(b, byte(len(c.yours.id))), c.yours.id...)
	b = binary.BigEndian.AppendUint64(b, c.yours.newest.Number)
	b = append(b, c.yours.newest.Nonce[:]...)
	return append(b, older)
}

// decodeGenerationReport decodes what encode has encoded.
func decodeGenerationReport(b []byte) (c generationReport, err error) {
	take := func(n int) []byte {
		if len(b) < n {
			err, b = errGenerationReport, nil
			return make([]byte, n)
		}
		taken := b[:n]
		b = b[n:]
		return taken
	}
	if v := take(1)[0]; err == nil && v != generationReportVersion {
		return c, fmt.Errorf("%w: version %d is not supported, only %d is", errGenerationReport, v, generationReportVersion)
	}
	c.id = string(take(int(take(1)[0])))
	c.start = binary.BigEndian.Uint64(take(8))
	newest := binary.BigEndian.Uint64(take(8))
	count := uint64(binary.BigEndian.Uint16(take(2)))
	if count > newest || count > wal.GenerationsKept {
		return c, fmt.Errorf("%w: %d generations up to number %d", errGenerationReport, count, newest)
	}
	for i := range count {
		c.own = append(c.own, wal.Generation{Number: newest - count + 1 + i, Nonce: wal.Nonce(take(len(wal.Nonce{})))})
	}
	c.yours.id = string(take(int(take(1)[0])))
	c.yours.newest.Number = binary.BigEndian.Uint64(take(8))
	c.yours.newest.Nonce = wal.Nonce(take(len(wal.Nonce{})))
	c.yours.older = take(1)[0] != 0
	if err == nil && len(b) > 0 {
		err = fmt.Errorf("%w: %d bytes too many", errGenerationReport, len(b))
	}
	return c, err
}

// began returns the first generation of this run of the node, zero if it is no
// longer among those shown.
func (c generationReport) began() wal.Generation {
	for _, g := range c.own {
		if g.Number == c.start {
			return g
		}
	}
	return wal.Generation{}
}

// follows returns nil if a directory that shows the generations own can be a
// later state of the one that has shown the generation shown. Otherwise it is a
// copy of an earlier state. older says that such a copy was seen before.
func follows(own []wal.Generation, shown wal.Generation, older bool) error {
	switch {
	case shown.Number == 0:
		return nil
	case len(own) == 0:
		return fmt.Errorf("it had shown generation %d and shows none", shown.Number)
	case shown.Number > own[len(own)-1].Number:
		return fmt.Errorf("it had shown generation %d and is at %d", shown.Number, own[len(own)-1].Number)
	case shown.Number >= own[0].Number:
		if own[shown.Number-own[0].Number].Nonce != shown.Nonce {
			return fmt.Errorf("its generation %d has another nonce than before", shown.Number)
		}
		return nil
	case older:
		return fmt.Errorf("an older copy was seen, and this directory no longer lists generation %d, which the right one has shown", shown.Number)
	}
	return nil // this node has not seen the directory for a long time, and it shows newer generations only
}
