package stack

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
)

// ProxyFolder is where the proxy keeps its record, and finds what Give gave it.
const ProxyFolder = "/var/lib/pgfailproxy/"

// Configure starts the proxy anew with other settings: lines of YAML beside those
// that it had from Options, until the next Configure or Reset. It returns when a
// primary is served.
func (s *Stack) Configure(ctx context.Context, settings string) error {
	config := s.options.Config
	if config == "" {
		config = "deploy/pgfailproxy.yaml"
	}
	text, err := os.ReadFile(s.path(config))
	if err != nil {
		return err
	}
	s.config = s.settings()
	if err := os.WriteFile(s.config, append(text, "\n"+settings...), 0o644); err != nil {
		return err
	}
	// What goes wrong at the start is in its log: nobody need wait for it.
	if _, err := s.compose(ctx, "up", "--detach", "--no-build", "--no-deps", "--force-recreate", Proxy); err != nil {
		return err
	}
	_, err = s.AwaitPair(ctx)
	return err
}

// settings is the file of what Configure was given.
func (s *Stack) settings() string { return filepath.Join(os.TempDir(), s.project+".yaml") }

// Give puts a file into the proxy's folder, where it stays until Reset.
func (s *Stack) Give(ctx context.Context, name string, content []byte) error {
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err := s.run(ctx, files.String(), "docker", "cp", "-", s.Container(Proxy)+":"+ProxyFolder)
	return err
}
