package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"
	"github.com/dgraph-io/ristretto/v2/z"
)

// checkTables reads Badger's registry, its manifest and all of its tables
// before Badger does. Badger reads tables on goroutines of its own, where a
// truncated or damaged table may end the process. It opens without a table
// whose checksum is wrong, and leaks goroutines when it fails to open. Tables
// hold keys and small values: most bytes are in value logs.
func checkTables(o badger.Options) error {
	f, err := os.Open(filepath.Join(o.Dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	manifest, _, err := badger.ReplayManifestFile(f, o.ExternalMagicVersion, o)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if err := checkRegistry(o, manifest); err != nil {
		return err
	}
	for id := range manifest.Tables {
		err := checkTable(table.NewFilename(id, o.Dir), o)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s lists a table that is missing: %w", f.Name(), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRegistry reads Badger's registry of encryption keys. The store encrypts
// nothing, so the registry is empty: if it is damaged and no file claims to be
// encrypted, it is removed, and Badger makes another.
func checkRegistry(o badger.Options, manifest badger.Manifest) error {
	path := filepath.Join(o.Dir, badger.KeyRegistryFileName)
	registry, err := badger.OpenKeyRegistry(badger.KeyRegistryOptions{Dir: o.Dir, ReadOnly: true})
	if err == nil {
		err = registry.Close()
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("read %s: %w", path, err)
	if _, environmental := explain(err); environmental {
		return err
	}
	for id, t := range manifest.Tables {
		if t.KeyID != 0 {
			return fmt.Errorf("%w; table %d is said to be encrypted", err, id)
		}
	}
	names, dirErr := os.ReadDir(o.Dir)
	if dirErr != nil {
		return dirErr
	}
	for _, n := range names {
		if !isBadgerLog(n.Name()) {
			continue
		}
		head, headErr := readBadgerLogHead(filepath.Join(o.Dir, n.Name()))
		if headErr != nil {
			return headErr
		}
		if len(head) >= 8 && binary.BigEndian.Uint64(head) != 0 {
			return fmt.Errorf("%w; %s is said to be encrypted", err, n.Name())
		}
	}
	o.Logger.Warningf("%v: it holds no keys and is made anew", err)
	return os.Remove(path)
}

func checkTable(path string, o badger.Options) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("table %s: %w", path, err)
		}
	}()
	file, err := z.OpenMmapFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close(-1)) }()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = errNoTable // Badger panics on bad lengths and offsets
		}
	}()
	t, err := table.OpenTable(file, table.Options{ChkMode: o.ChecksumVerificationMode})
	if err != nil {
		return errors.Join(errNoTable, err)
	}
	if err := t.VerifyChecksum(); err != nil {
		return errors.Join(errNoTable, err)
	}
	return nil
}

var errNoTable = errors.New("its content is not what was written")
