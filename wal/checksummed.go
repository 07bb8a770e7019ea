package wal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/cantuslog/cantus/wal/journal"
)

// A checksummed file is a line of JSON, and a line with its CRC-32C in
// hexadecimal. It is readable, and a flipped byte is detected.

func encodeChecksummed(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	b = append(b, '\n')
	return fmt.Appendf(b, "%08x\n", crc32.Checksum(b, castagnoli)), nil
}

// decodeChecksummed decodes the result of encodeChecksummed. The error wraps
// ErrDamaged.
func decodeChecksummed(b []byte, v any) error {
	cut := len(b) - 9
	if cut < 1 || !bytes.Equal(b[cut:], fmt.Appendf(nil, "%08x\n", crc32.Checksum(b[:cut], castagnoli))) {
		return fmt.Errorf("%w: checksum is wrong", ErrDamaged)
	}
	if err := json.Unmarshal(b[:cut], v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// writeChecksummed replaces a checksummed file durably, or leaves the old one.
func writeChecksummed(path string, v any) error {
	b, err := encodeChecksummed(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	tmp := path + ".tmp"
	if err := writeSynced(tmp, b); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return journal.OSFS.SyncDir(filepath.Dir(path))
}

// readChecksummed reads a checksummed file into v. The error is fs.ErrNotExist
// if there is no file.
func readChecksummed(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := decodeChecksummed(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncFile syncs a file that Badger has open: fsync applies to the file, not to
// the descriptor.
func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
