package wal

import (
	"encoding/binary"
	"fmt"

	"github.com/cantuslog/cantus/wal/journal"
)

// Keys of journal operations and of Badger. The first byte is the kind. Numbers
// are big-endian, so that Badger sorts a log by index.
const (
	opEntry    = 'e' // + group + index: an entry. In Badger too.
	opTx       = 't' // + group + txid: the index of the batch that begins there. In Badger only.
	opMeta     = 'm' // + group + name: a log's small state
	opVoid     = 'v' // + group: value is the index of a void batch
	opTruncate = 'x' // + group: value is the first index to remove; 1 for all
	opTrim     = 'h' // + group: value is the first index to keep
	opApplied  = 's' // the last journal frame that Badger has. In Badger only.
	opDeleted  = 'd' // how many bytes were deleted since tables were merged. In Badger only.
	opScratch  = 'z' // written to be dropped. In Badger only.
)

func groupKey(op byte, group uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{op}, group)
}

func indexKey(op byte, group uint32, index uint64) []byte {
	k := make([]byte, 0, 13)
	k = append(k, op)
	k = binary.BigEndian.AppendUint32(k, group)
	return binary.BigEndian.AppendUint64(k, index)
}

func keyGroup(key []byte) uint32 { return binary.BigEndian.Uint32(key[1:]) }
func keyIndex(key []byte) uint64 { return binary.BigEndian.Uint64(key[5:]) }

func indexValue(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

// checkOps returns an error unless all operations have the form in which a log
// writes them.
func checkOps(ops []journal.Op) error {
	for i, op := range ops {
		key, value := len(op.Key), len(op.Value)
		ok := false
		if key > 0 {
			switch op.Key[0] {
			case opEntry:
				ok = key == 13 && keyIndex(op.Key) > 0
			case opTruncate, opTrim, opVoid:
				ok = key == 5 && value == 8 && binary.BigEndian.Uint64(op.Value) > 0
			case opMeta:
				ok = key >= 5
			}
		}
		if !ok {
			return fmt.Errorf("operation %d has the key %q and %d bytes", i, op.Key, value)
		}
	}
	return nil
}
