package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// The generated model is made like those that people serve: safetensors shards with an index, a
// configuration, a tokenizer, and the odd names that real repositories have.

const (
	demoShards = 8
	minModel   = 1 << 20
	rowBytes   = 4096 * 2 // one row of a BF16 matrix 4096 wide
)

// tensor is an entry of a safetensors header.
type tensor struct {
	DType   string   `json:"dtype"`
	Shape   [2]int64 `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// writeModel makes a model of about size bytes in dir. Equal sizes give equal bytes.
func writeModel(ctx context.Context, dir string, size int64) error {
	if size < minModel {
		return fmt.Errorf("--size: a model of less than %d bytes has no shards to speak of", minModel)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	index := struct {
		Metadata  map[string]int64  `json:"metadata"`
		WeightMap map[string]string `json:"weight_map"`
	}{map[string]int64{"total_size": size}, map[string]string{}}
	for i := range demoShards {
		if err := ctx.Err(); err != nil {
			return err
		}
		for name := range tensorsOf(i, size/demoShards) {
			index.WeightMap[name] = shardName(i)
		}
		if err := writeShard(dir, i, size/demoShards, 0); err != nil {
			return err
		}
	}
	weights, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	words := map[string]int{}
	for i := range 4000 {
		words[fmt.Sprintf("token%04d", i)] = i
	}
	tokenizer, err := json.Marshal(map[string]any{"version": "1.0", "model": map[string]any{"type": "BPE", "vocab": words}})
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"model.safetensors.index.json": string(weights),
		"config.json":                  `{"architectures":["DemoForCausalLM"],"hidden_size":4096,"torch_dtype":"bfloat16"}`,
		"generation_config.json":       `{"temperature":0.7,"top_p":0.8}`,
		"tokenizer.json":               string(tokenizer),
		"tokenizer_config.json":        `{"model_max_length":131072}`,
		".gitattributes":               "",
		"使用 说明 (read me).md":           "# 演示模型\n\nA model made of noise, to be carried and not to be asked.\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func shardName(i int) string {
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, demoShards)
}

// tensorsOf lays two matrices out in a shard of about size bytes.
func tensorsOf(shard int, size int64) map[string]tensor {
	rows := max(size/rowBytes, 2)
	half := rows / 2
	return map[string]tensor{
		fmt.Sprintf("model.layers.%d.mlp.up_proj.weight", shard):   {"BF16", [2]int64{half, 4096}, [2]int64{0, half * rowBytes}},
		fmt.Sprintf("model.layers.%d.mlp.down_proj.weight", shard): {"BF16", [2]int64{rows - half, 4096}, [2]int64{half * rowBytes, rows * rowBytes}},
	}
}

// writeShard writes a safetensors file: the header's length (8 bytes, little endian), the header,
// the tensors. version changes all of the tensors' bytes.
func writeShard(dir string, i int, size int64, version byte) (err error) {
	header, err := json.Marshal(tensorsOf(i, size))
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, shardName(i)))
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := binary.Write(w, binary.LittleEndian, uint64(len(header))); err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{byte(i), version})
	if _, err := io.CopyN(w, noise, max(size/rowBytes, 2)*rowBytes); err != nil {
		return err
	}
	return w.Flush()
}

// changeModel makes version two: one shard of a generated model, or the largest file's last byte
// of another one.
func changeModel(dir string, generated bool, size int64) error {
	if generated {
		return writeShard(dir, demoShards/2, size/demoShards, 1)
	}
	name, largest, err := largestFile(dir)
	if err != nil {
		return err
	}
	if largest == 0 {
		return fmt.Errorf("model %s: every file is empty", dir)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, largest-1)
	if err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b, largest-1)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

func largestFile(dir string) (name string, size int64, err error) {
	err = filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() >= size {
			name, size = p, info.Size()
		}
		return err
	})
	return name, size, err
}

// copyModel copies a directory of regular files, so that version two does not touch the user's.
func copyModel(ctx context.Context, from, to string) error {
	return filepath.Walk(from, func(p string, info os.FileInfo, err error) error {
		if err != nil || ctx.Err() != nil {
			return orElse(err, ctx.Err())
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case info.IsDir():
			return os.MkdirAll(target, 0o755)
		case !info.Mode().IsRegular():
			return fmt.Errorf("--model: %s is neither a file nor a folder", p)
		}
		return copyFile(p, target)
	})
}

func orElse(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return orElse(err, out.Close())
}
