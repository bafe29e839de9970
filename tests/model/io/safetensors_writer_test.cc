#include "model/io/safetensors_writer.h"

#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/io/mapped_file.h"
#include "model/io/safetensors.h"

namespace smt {
namespace {

using ::testing::HasSubstr;

TEST(SafetensorsWriterTest, BytesEqualThoseOfTheFormatsOwnLibrary) {
  const std::string path = "tests/golden/safetensors/python.safetensors";
  const absl::StatusOr<SafetensorsReader> golden = SafetensorsReader::Open(path);
  ASSERT_TRUE(golden.ok()) << golden.status();
  SafetensorsWriter writer;
  for (const auto& [key, value] : golden->metadata()) ASSERT_TRUE(writer.SetMetadata(key, value).ok());
  for (auto tensor = golden->tensors().rbegin(); tensor != golden->tensors().rend(); ++tensor) {
    ASSERT_TRUE(writer.Add(tensor->name, tensor->dtype, tensor->shape, golden->Bytes(*tensor)).ok());
  }
  EXPECT_EQ(*writer.ToString(), MappedFile::Open(path)->bytes());
}

TEST(SafetensorsWriterTest, FloatsEncodeAsTheFormatsOwnLibraryRoundsThem) {
  const absl::StatusOr<SafetensorsReader> golden =
      SafetensorsReader::Open("tests/golden/safetensors/python.safetensors");
  ASSERT_TRUE(golden.ok()) << golden.status();
  const std::vector<float> values = *golden->ReadFloat32("f32");
  EXPECT_EQ(*EncodeFloats(SafetensorsDType::kF32, values), *golden->Bytes("f32"));
  EXPECT_EQ(*EncodeFloats(SafetensorsDType::kF16, values), *golden->Bytes("f16"));
  EXPECT_EQ(*EncodeFloats(SafetensorsDType::kBF16, values), *golden->Bytes("bf16"));
  EXPECT_EQ(EncodeFloats(SafetensorsDType::kI32, values).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsWriterTest, OrderOfAddingDoesNotMatterAndDataIsAligned) {
  const std::vector<float> floats = {1, 2, 3};
  const std::vector<int64_t> longs = {4, 5};
  const std::string odd = "odd";
  SafetensorsWriter forward, backward;
  ASSERT_TRUE(forward.Add("a", SafetensorsDType::kU8, {3}, odd).ok());
  ASSERT_TRUE(forward.AddFloat32("b", {3}, floats).ok());
  ASSERT_TRUE(forward.AddInt64("c", {1, 2}, longs).ok());
  ASSERT_TRUE(backward.AddInt64("c", {1, 2}, longs).ok());
  ASSERT_TRUE(backward.AddFloat32("b", {3}, floats).ok());
  ASSERT_TRUE(backward.Add("a", SafetensorsDType::kU8, {3}, odd).ok());
  const std::string bytes = *forward.ToString();
  EXPECT_EQ(bytes, *backward.ToString());

  const absl::StatusOr<SafetensorsHeader> header = ParseSafetensorsHeader(bytes);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->data_begin % 8, 0u);
  for (const TensorInfo& tensor : header->tensors) {
    EXPECT_EQ((header->data_begin + tensor.begin) % (BitsPerElement(tensor.dtype) / 8), 0u) << tensor.name;
  }
}

TEST(SafetensorsWriterTest, RandomTensorsComeBackEqual) {
  std::mt19937_64 rng(1);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> data;
    std::vector<TensorInfo> infos;
    const size_t count = rng() % 8;
    for (size_t i = 0; i < count; ++i) {
      TensorInfo info;
      info.name = "t" + std::to_string(rng() % 1000) + "." + std::to_string(i);
      do {
        info.dtype = static_cast<SafetensorsDType>(rng() % 20);
      } while (BitsPerElement(info.dtype) % 8 != 0);
      info.elements = 1;
      for (size_t dimensions = rng() % 4; dimensions > 0; --dimensions) {
        info.shape.push_back(static_cast<int64_t>(rng() % 5));
        info.elements *= info.shape.back();
      }
      std::string bytes(static_cast<size_t>(info.elements * BitsPerElement(info.dtype) / 8), '\0');
      for (char& byte : bytes) byte = static_cast<char>(rng());
      data.push_back(std::move(bytes));
      infos.push_back(std::move(info));
    }
    SafetensorsWriter writer;
    if (round % 2 == 0) {
      ASSERT_TRUE(writer.SetMetadata("round", std::to_string(round)).ok());
    }
    for (size_t i = 0; i < count; ++i) {
      ASSERT_TRUE(writer.Add(infos[i].name, infos[i].dtype, infos[i].shape, data[i]).ok());
    }
    const absl::StatusOr<SafetensorsReader> file = SafetensorsReader::FromString(*writer.ToString());
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_EQ(file->tensors().size(), count);
    EXPECT_EQ(file->metadata().size(), round % 2 == 0 ? 1u : 0u);
    for (size_t i = 0; i < count; ++i) {
      const TensorInfo* tensor = file->Find(infos[i].name);
      ASSERT_NE(tensor, nullptr);
      EXPECT_EQ(tensor->dtype, infos[i].dtype);
      EXPECT_EQ(tensor->shape, infos[i].shape);
      EXPECT_EQ(tensor->elements, infos[i].elements);
      EXPECT_EQ(file->Bytes(*tensor), data[i]);
    }
  }
}

TEST(SafetensorsWriterTest, FileEqualsStringAndReplacesTheOldOne) {
  const std::string path = testing::TempDir() + "/writer_test.safetensors";
  for (const int32_t value : {1, 2}) {
    const std::vector<int32_t> values = {value};
    SafetensorsWriter writer;
    ASSERT_TRUE(writer.AddInt32("v", {1}, values).ok());
    ASSERT_TRUE(writer.WriteFile(path).ok());
    EXPECT_EQ(MappedFile::Open(path)->bytes(), *writer.ToString());
  }
  std::filesystem::remove(path);
}

TEST(SafetensorsWriterTest, ProducedTensorsAreMadeWhenWrittenAndMustFit) {
  const std::vector<float> values = {1.0f, 2.5f};
  int calls = 0;
  SafetensorsWriter given, produced;
  const std::string encoded = *EncodeFloats(SafetensorsDType::kBF16, values);
  ASSERT_TRUE(given.Add("a", SafetensorsDType::kBF16, {2}, encoded).ok());
  ASSERT_TRUE(produced
                  .AddProduced("a", SafetensorsDType::kBF16, {2},
                               [&]() -> absl::StatusOr<std::string> {
                                 ++calls;
                                 return encoded;
                               })
                  .ok());
  EXPECT_EQ(calls, 0);
  EXPECT_EQ(*produced.ToString(), *given.ToString());
  EXPECT_EQ(calls, 1);

  SafetensorsWriter wrong;
  ASSERT_TRUE(wrong.AddProduced("a", SafetensorsDType::kU8, {2}, [] { return "abc"; }).ok());
  EXPECT_THAT(std::string(wrong.ToString().status().message()), HasSubstr("takes 2 bytes, but 3 were produced"));
  const std::string path = testing::TempDir() + "/never.safetensors";
  EXPECT_FALSE(wrong.WriteFile(path).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
  SafetensorsWriter failing;
  ASSERT_TRUE(failing.AddProduced("a", SafetensorsDType::kU8, {2}, [] { return absl::AbortedError("why"); }).ok());
  EXPECT_EQ(failing.ToString().status(), absl::AbortedError("why"));
}

TEST(SafetensorsWriterTest, WhatTheFormatCannotHoldIsRefusedByName) {
  const std::vector<float> one = {1};
  SafetensorsWriter writer;
  const auto message = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(message(writer.AddFloat32("a", {2}, one)), HasSubstr("tensor 'a': dtype F32 with shape [2] takes 8"));
  EXPECT_THAT(message(writer.AddFloat32("a", {-1}, one)), HasSubstr("shape [-1] has a negative size"));
  EXPECT_THAT(message(writer.AddFloat32("a", {INT64_MAX, 4}, one)), HasSubstr("more than 2^63 - 1 bits"));
  EXPECT_THAT(message(writer.AddFloat32("a", {0, INT64_MAX, 4}, {})), HasSubstr("more than 2^63 - 1 bits"));
  EXPECT_THAT(message(writer.AddFloat32("a", std::vector<int64_t>(65, 1), one)), HasSubstr("at most 64"));
  EXPECT_THAT(message(writer.Add("a", SafetensorsDType::kF4, {3}, "xx")), HasSubstr("does not fill whole bytes"));
  EXPECT_THAT(message(writer.AddFloat32("__metadata__", {1}, one)), HasSubstr("reserved"));
  EXPECT_THAT(message(writer.AddFloat32("\xff", {1}, one)), HasSubstr("tensor '\\xff' is not UTF-8"));
  EXPECT_THAT(message(writer.SetMetadata("\xff", "")), HasSubstr("metadata key '\\xff' is not UTF-8"));
  EXPECT_THAT(message(writer.SetMetadata("k", "\xc3")), HasSubstr("metadata 'k' '\\xc3' is not UTF-8"));
  ASSERT_TRUE(writer.AddFloat32("a", {1}, one).ok());
  EXPECT_THAT(message(writer.AddFloat32("a", {1}, one)), HasSubstr("tensor 'a' is added twice"));
}

}  // namespace
}  // namespace smt
