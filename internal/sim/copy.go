package sim

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cantuslog/cantus/wal/journal/journaltest"
)

// copyDisk copies what the next process finds, if copies are kept.
func (n *Node) copyDisk() error {
	if !n.cluster.opts.Copies {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.copied = n.disk.Clone()
	return replaceDir(n.copyDir(), n.dir)
}

func (n *Node) copyDir() string { return n.dir + "-older" }

// nextDisk returns the disk as the next process finds it, and brings the
// directory into the same state. mu is held.
func (n *Node) nextDisk() (*Disk, error) {
	change := n.change
	n.change = kept
	n.older = change == older
	switch change {
	case older:
		return newDisk(n.copied.Clone(), n.rng), replaceDir(n.dir, n.copyDir())
	case erased:
		n.erased = true
		return newDisk(journaltest.New(n.rng.Uint64()), n.rng), errors.Join(os.RemoveAll(n.dir), os.Mkdir(n.dir, 0o700))
	}
	return n.disk.next(), nil
}

// replaceDir replaces a directory by a copy of another one. Parts of files that
// are all zeros are left out of the copy, as holes.
func replaceDir(to, from string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		}
		return copyFile(filepath.Join(to, name), path)
	})
}

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	block, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(in, block)
		if n > 0 && !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := out.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		if at += int64(n); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return out.Truncate(at)
		}
		if err != nil {
			return err
		}
	}
}
