package journal_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// forged makes a frame with a given salt, as anyone could after reading the
// description of the format.
func forged(salt, seq uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, seq^salt)
	b = append(b, 1, 2, 0, 'k', 0, 0, 0, 0)
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(0, table, binary.LittleEndian.AppendUint64(nil, salt))
	crc = crc32.Update(crc, table, b[:4])
	binary.LittleEndian.PutUint32(b[4:], crc32.Update(crc, table, b[8:]))
	return b
}

// unclose makes a closed journal look as if it had been killed.
func unclose(t *testing.T, fs *journaltest.FS) {
	t.Helper()
	const path = dir + "/checkpoint"
	b := fs.ReadFile(path)
	for i := range 8 {
		b[64+i] = 0xff
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(crc32.Update(0, table, b[:12]), table, b[16:])
	binary.LittleEndian.PutUint32(b[12:], crc)
	fs.WriteFile(path, b)
}
