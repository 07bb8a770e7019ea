package journal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Salvage reads every intact frame that is in the directory of a journal, also
// released ones that are still there, whatever else is damaged. It calls visit
// for each, in the order of their sequence numbers, with the place of each
// operation's value. The slices are valid during the call. Salvage changes
// nothing. problems are the files that can't be read; what is damaged inside of
// a file is passed over silently.
func Salvage(dir string, visit func(seq uint64, ops []Op) error) (problems []error, err error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return []error{err}, nil //nolint:nilerr // it is among the problems
	}
	sv := salvage{dir: dir}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), segmentSuffix) || strings.HasPrefix(n.Name(), sparePrefix) {
			if err := sv.scan(filepath.Join(dir, n.Name())); err != nil {
				problems = append(problems, err)
			}
		}
	}
	defer sv.close()
	slices.SortFunc(sv.frames, func(a, b foundFrame) int { return cmp.Compare(a.seq, b.seq) })
	for i, f := range sv.frames {
		if i > 0 && f.seq == sv.frames[i-1].seq {
			continue
		}
		if err := sv.visit(f, visit); err != nil {
			return problems, err
		}
	}
	return problems, nil
}

type foundFrame struct {
	seq  uint64
	path string
	off  int64
	size int64
}

type salvage struct {
	dir    string
	salt   *uint64 // of the journal, once it is known
	frames []foundFrame
	file   *os.File // that visit has read last, nil before the first
}

func (sv *salvage) close() {
	if sv.file != nil {
		_ = sv.file.Close() // it was only read
		sv.file = nil
	}
}

// saltOf returns the salt of the journal: that of the file's label, or of any
// other label of the journal.
func (sv *salvage) saltOf(path string) (uint64, error) {
	var errs []error
	others, _ := filepath.Glob(filepath.Join(sv.dir, "*"))
	for _, name := range append([]string{path, filepath.Join(sv.dir, checkpointName)}, others...) {
		b := make([]byte, labelSize)
		f, err := os.Open(name)
		if err == nil {
			err = errors.Join(readFull(f, b, 0), f.Close())
		}
		for _, magic := range []string{segmentMagic, checkpointMagic} {
			if err != nil {
				break
			}
			l, labelErr := decodeLabel(name, magic, b)
			if labelErr == nil {
				return l.salt, nil
			}
			errs = append(errs, labelErr)
		}
	}
	return 0, fmt.Errorf("no label is left in %s: %w", sv.dir, errors.Join(errs...))
}

func (sv *salvage) scan(path string) error {
	if sv.salt == nil {
		salt, err := sv.saltOf(path)
		if err != nil {
			return err
		}
		sv.salt = &salt
	}
	f, err := OSFS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	c := newCodec(*sv.salt)
	w := &window{segment: &segment{path: path, file: f, size: size}, start: -1}
	for off := int64(labelBlock); ; {
		at, err := w.find(c, off, 1)
		if err != nil || at < 0 {
			return err
		}
		head, err := w.bytes(at, frameHeader)
		if err != nil {
			return err
		}
		length, seq := c.header(head)
		if length > frameHeader { // else a seal
			sv.frames = append(sv.frames, foundFrame{seq, path, at, length})
		}
		off = at + length
	}
}

func (sv *salvage) visit(at foundFrame, visit func(uint64, []Op) error) error {
	if sv.file == nil || sv.file.Name() != at.path { // most frames follow one in the same file
		sv.close()
		f, err := os.Open(at.path)
		if err != nil {
			return err
		}
		sv.file = f
	}
	b := make([]byte, at.size)
	if err := readFull(sv.file, b, at.off); err != nil {
		return err
	}
	ops, err := decodeOps(frameBody(b))
	if err != nil {
		return nil //nolint:nilerr // none that this version wrote
	}
	return visit(at.seq, ops)
}
