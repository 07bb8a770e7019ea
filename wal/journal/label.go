package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	formatVersion = 1
	labelSize     = 72

	// labelBlock is the space that a segment reserves for its label, so that
	// writing frames never rewrites the disk block that holds the label.
	labelBlock = 4096

	segmentMagic    = "CNTSseg\n"
	checkpointMagic = "CNTSchk\n"

	checkpointName = "checkpoint"
	checkpointTemp = "checkpoint.tmp"
	segmentTemp    = "segment.tmp"
	segmentSuffix  = ".seg"
	sparePrefix    = "spare-"
)

// identity is the same in all files of one journal.
type identity struct {
	salt  uint64
	store [16]byte
}

// label is the fixed record at the start of a segment. A checkpoint is a label
// alone.
type label struct {
	identity
	fields [4]uint64
}

func (l label) encode(magic string) []byte {
	b := make([]byte, labelSize)
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint64(b[16:], l.salt)
	copy(b[24:40], l.store[:])
	for i, v := range l.fields {
		binary.LittleEndian.PutUint64(b[40+8*i:], v)
	}
	binary.LittleEndian.PutUint32(b[12:], labelSum(b))
	return b
}

func labelSum(b []byte) uint32 {
	crc := crc32.Update(0, castagnoli, b[:12])
	return crc32.Update(crc, castagnoli, b[16:labelSize])
}

// decodeLabel decodes a label. It checks the version before the checksum, since
// only the magic and the version keep their place in other versions.
func decodeLabel(file, magic string, b []byte) (l label, err error) {
	if len(b) < labelSize {
		return l, damaged(file, 0, "%d bytes where %d should be", len(b), labelSize)
	}
	if string(b[:8]) != magic {
		return l, damaged(file, 0, "does not begin as such a file does")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return l, fmt.Errorf("%s: version %d, this program knows %d: %w", file, v, formatVersion, ErrVersion)
	}
	if labelSum(b) != binary.LittleEndian.Uint32(b[12:]) {
		return l, damaged(file, 0, "checksum of the first %d bytes is wrong", labelSize)
	}
	l.salt = binary.LittleEndian.Uint64(b[16:])
	copy(l.store[:], b[24:40])
	for i := range l.fields {
		l.fields[i] = binary.LittleEndian.Uint64(b[40+8*i:])
	}
	return l, nil
}

// checkpoint is where the part of the journal begins that is not released.
type checkpoint struct {
	identity
	first    uint64 // number of the first segment that is needed
	base     uint64 // sequence number of the first frame in that segment
	released uint64 // frames up to this one are safe elsewhere
	last     uint64 // last frame, if closed; stillOpen otherwise
}

// stillOpen stands for the last frame while a journal is open.
const stillOpen = math.MaxUint64

func (c checkpoint) encode() []byte {
	l := label{c.identity, [4]uint64{c.first, c.base, c.released, c.last}}
	return l.encode(checkpointMagic)
}

func decodeCheckpoint(file string, b []byte) (checkpoint, error) {
	l, err := decodeLabel(file, checkpointMagic, b)
	if err != nil {
		return checkpoint{}, err
	}
	if len(b) != labelSize {
		return checkpoint{}, damaged(file, labelSize, "%d bytes too many", len(b)-labelSize)
	}
	f := l.fields
	return checkpoint{identity: l.identity, first: f[0], base: f[1], released: f[2], last: f[3]}, nil
}

// install replaces the checkpoint on disk, durably when it returns nil. If
// renamed is false the old one is still there, whatever the error.
func (c checkpoint) install(fs FS, dir string) (renamed bool, err error) {
	temp := filepath.Join(dir, checkpointTemp)
	if err := writeFile(fs, temp, c.encode()); err != nil {
		return false, fmt.Errorf("write checkpoint: %w", err)
	}
	if err := fs.Rename(temp, filepath.Join(dir, checkpointName)); err != nil {
		return true, fmt.Errorf("rename checkpoint: %w", err) // it may have been renamed
	}
	if err := fs.SyncDir(dir); err != nil {
		return true, fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return true, nil
}

// writeFile writes and syncs a file of the given content.
func writeFile(fs FS, name string, content []byte) error {
	f, err := fs.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	return f.Sync()
}

func segmentName(number uint64) string { return fmt.Sprintf("%016x%s", number, segmentSuffix) }

// parseSegmentName is the inverse of segmentName.
func parseSegmentName(name string) (number uint64, ok bool) {
	number, err := strconv.ParseUint(strings.TrimSuffix(name, segmentSuffix), 16, 64)
	return number, err == nil && name == segmentName(number)
}
